// The oldest symbols of what the core asks of the C library, whatever library it is linked with.
//
// A linker takes the newest version of a symbol that its own machine has, and a wheel with pow of
// glibc 2.29 does not load on 2.28. The old versions are still there, and compute the same: what is
// new about the new ones is how they report errors (pow, log) or which file they live in. Hidden,
// these definitions are the module's own; they are linked as C, because link-time optimization of
// the core's sources knows nothing of symbol versions.

#if defined(__x86_64__)
#define OLDEST "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define OLDEST "GLIBC_2.17"
#endif
#define OLD(name) __asm__(".symver old_" #name ", " #name "@" OLDEST)

#define HIDDEN __attribute__((visibility("hidden")))

double old_pow(double, double);
OLD(pow);
HIDDEN double pow(double x, double y) { return old_pow(x, y); }

double old_log(double);
OLD(log);
HIDDEN double log(double x) { return old_log(x); }

int old_pthread_once(int* control, void (*routine)(void));
OLD(pthread_once);
HIDDEN int pthread_once(int* control, void (*routine)(void)) { return old_pthread_once(control, routine); }

// What shared_ptr asks before it counts without a lock: there may always be threads.
HIDDEN char __libc_single_threaded = 0;
