// A parallel region without compiler support: GCC and clang build the same call.
#pragma once

// What GCC makes of `#pragma omp parallel`: libgomp's stable entry points, which LLVM's and Intel's
// runtimes export too, under the same symbol versions. clang's own pragma would call entry points
// that libgomp does not have, and so bring a second runtime, and its threads, beside torch's.
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_num_threads();
int omp_get_thread_num();
}

namespace fastopt {

// Calls body(rank, size) once in each of at most `team` threads, this one among them, and returns
// when all are done.
template <class Body>
void parallel(int team, const Body& body) {
  if (team <= 1) return body(0, 1);
  const auto member = [](void* data) noexcept {
    (*static_cast<const Body*>(data))(omp_get_thread_num(), omp_get_num_threads());
  };
  GOMP_parallel(member, const_cast<Body*>(&body), unsigned(team), 0);
}

}  // namespace fastopt
