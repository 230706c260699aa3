#!/usr/bin/env bash
# run.sh address|thread PYTHON: the suite over a core built with clang's sanitizers.
#
# PYTHON is an interpreter with the test packages (`make test` makes one). The core goes into
# build/sanitize-*, in an environment of its own that borrows them. CLANG names the compiler; by
# default the newest here. Debian: clang-19, libclang-rt-19-dev, libomp-19-dev, llvm-19.
set -euo pipefail
kind=$1 python=$2
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
room=$PWD/build/sanitize-$kind
clang=${CLANG:-$(compgen -c clang++ | grep -E '^clang\+\+(-[0-9]+)?$' | sort -V | tail -1 || true)}
[ -n "$clang" ] || { echo "make sanitize needs clang++ (Debian: clang-19); CLANG=... names one" >&2; exit 1; }

# The file of a runtime that comes with this clang.
runtime() {
  local name file
  for name in "$@"; do
    file=$("$clang" -print-file-name="$name")
    [ -e "$file" ] && { echo "$file"; return; }
  done
  echo "make sanitize needs $1, which $clang does not have (Debian: libclang-rt-*-dev, libomp-*-dev)" >&2
  exit 1
}

# Parts of the suite that are left out, and why.
without=(
  # They time, draw and train for minutes, and reach no line of the core that the others do not.
  --ignore-glob='tests/test_benchmarks*' --ignore=tests/test_demo.py --ignore=tests/test_readme.py
  --ignore=tests/test_pages.py --ignore=tests/test_faq.py --ignore=tests/test_docstrings.py
  --ignore=tests/test_insight.py
  # Triton's interpreter is Python; the core's part in it, rows.cpp, is in test_triton_scaler.py.
  --ignore=tests/test_triton_interpreted.py --ignore=tests/test_triton_passes.py
  # Resident memory grows by design: freed memory waits in a quarantine, shadow memory is touched.
  --deselect=tests/test_lifetime.py::test_resident_memory_stays
  # It preloads a runtime of its own and counts those that are loaded: libomp is one more.
  --ignore=tests/test_openmp.py
)
case $kind in
  address)
    flags="-fsanitize=address,undefined -fno-sanitize-recover=all"
    # libstdc++ too: the runtime looks for __cxa_throw when it starts, before torch brings it.
    preload=$(runtime libclang_rt.asan-x86_64.so libclang_rt.asan-aarch64.so libclang_rt.asan.so)
    preload="$preload $("$clang" -print-file-name=libstdc++.so.6)"
    ;;
  thread)
    flags="-fsanitize=thread"
    # libomp in front of torch's libgomp: it has the same entry points, so torch and the core share
    # it, and its tool Archer tells the sanitizer where its threads fork and join. libgomp would
    # have to be built with the sanitizer for that.
    preload=$(runtime libclang_rt.tsan-x86_64.so libclang_rt.tsan-aarch64.so libclang_rt.tsan.so)
    preload="$preload $(runtime libomp.so.5 libomp.so)"
    export OMP_TOOL_LIBRARIES; OMP_TOOL_LIBRARIES=$(runtime libarcher.so)
    # The sanitizer's shadow of 8 GB of addresses would take 24 GB of memory.
    without+=(--deselect=tests/test_layouts.py::test_more_than_2_to_the_31_elements)
    # ThreadSanitizer sees accesses of up to 16 bytes: the kernels' vectors must be no wider.
    [ "$(uname -m)" != x86_64 ] || export FASTOPT_ISA=baseline
    ;;
  *) echo "the sanitizers are '$kind'; allowed: address, thread"; exit 1 ;;
esac

[ -x "$room/bin/python" ] || "$python" -m venv "$room"
packages=$("$room/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("site-packages")), sep="\n")' \
  > "$packages/borrowed.pth"
CXX=$clang CXXFLAGS="$flags -shared-libsan -fno-omit-frame-pointer" \
  "$room/bin/python" -m pip install --quiet --no-deps --editable . -C build-dir="$room/cmake" \
  -C cmake.build-type=RelWithDebInfo -C install.strip=false -C cmake.define.FASTOPT_WERROR=ON

# Reports go to files: pytest would swallow them. Python's own allocator would hide from the
# sanitizer that an object was freed; leaks are left to test_lifetime.py, because Python and torch
# keep memory until the process ends. What is not instrumented (Python, torch, NumPy) is not judged:
# its atomics are invisible, so each of its reference counts would be a race.
rm -f "$room"/report.*
log=log_path=$room/report
export PYTHONMALLOC=malloc
export ASAN_OPTIONS=$log:detect_leaks=0
export UBSAN_OPTIONS=$log:halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=$log:ignore_noninstrumented_modules=1:suppressions=$here/thread.supp
symbolizer=$("$clang" -print-prog-name=llvm-symbolizer)
export ASAN_SYMBOLIZER_PATH=$symbolizer UBSAN_SYMBOLIZER_PATH=$symbolizer
export TSAN_SYMBOLIZER_PATH=$symbolizer

# A fault made on purpose must be seen, or a green run says nothing.
LD_PRELOAD=$preload "$room/bin/python" "$here/fault.py" "$kind" 2> /dev/null || true
compgen -G "$room/report.*" > /dev/null || { echo "the $kind sanitizer did not see fault.py"; exit 1; }
rm -f "$room"/report.*

status=0
LD_PRELOAD=$preload "$room/bin/python" -m pytest -q -p no:faulthandler -p no:cacheprovider \
  "${without[@]}" ${ARGS:-} || status=$?
if compgen -G "$room/report.*" > /dev/null; then
  cat "$room"/report.*
  exit 1
fi
exit $status
