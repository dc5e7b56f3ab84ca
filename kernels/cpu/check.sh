#!/usr/bin/env bash
# Builds the kernels' test driver (selftest.cpp) with sanitizers and for aarch64, and runs it:
#   address   every kernel with buffers of exactly the needed size, on every instruction set of this machine
#             (address and undefined-behaviour sanitizers)
#   thread    the thread pool with several callers (thread sanitizer)
#   aarch64   every kernel in an emulator; needs Debian's cross compiler and qemu
# Without arguments runs all three. With arguments runs those.
set -euo pipefail
cd "$(dirname "$0")"
build=../../build
jobs=$(nproc)

make_driver() { # build folder, options for cmake
  local folder=$1
  shift
  cmake -S . -B "$folder" -DEDGELLAMA_SELFTEST=ON -DEDGELLAMA_OUTPUT="$folder" "$@" >/dev/null
  cmake --build "$folder" --parallel "$jobs" --target selftest | grep -E "error|warning|Linking" || true
  [ -x "$folder/selftest" ]
}

address() {
  make_driver "$build/sanitize-address" -DEDGELLAMA_SANITIZE=address,undefined
  # Fill new memory with large numbers instead of zeros, so that a kernel that reads what nobody wrote gives wrong results.
  ASAN_OPTIONS=max_malloc_fill_size=1073741824:malloc_fill_byte=127 "$build/sanitize-address/selftest" kernels
}

thread() {
  make_driver "$build/sanitize-thread" -DEDGELLAMA_SANITIZE=thread
  "$build/sanitize-thread/selftest" pool
}

aarch64() {
  if ! command -v aarch64-linux-gnu-g++ >/dev/null || ! command -v qemu-aarch64-static >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      apt-get install --yes --no-install-recommends g++-aarch64-linux-gnu qemu-user-static >/dev/null
    else
      echo "not checked: install g++-aarch64-linux-gnu and qemu-user-static (Debian) first"
      return
    fi
  fi
  make_driver "$build/aarch64" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
  qemu-aarch64-static -cpu max -L /usr/aarch64-linux-gnu "$build/aarch64/selftest" kernels
}

for check in "${@:-address thread aarch64}"; do
  for one in $check; do
    echo "== $one"
    "$one"
  done
done
