#!/usr/bin/env bash
# Builds the kernels' test driver (selftest.cpp) with sanitizers and for aarch64, and runs it:
#   address   every kernel with buffers of exactly the needed size, on each instruction set of this machine by itself
#             (address and undefined-behaviour sanitizers)
#   thread    the thread pool with several callers (thread sanitizer)
#   aarch64   every kernel in an emulator ; needs Debian's cross compiler and qemu
#   fuzz      the argument checks (fuzz_arguments.cpp) with libFuzzer and the first two sanitizers; needs clang.
#             FUZZ_SECONDS (30) is its time; new inputs go to build/fuzz/kernels
# Without arguments runs all of them. With arguments runs those.
set -euo pipefail
cd "$(dirname "$0")"
build=../../build
jobs=$(nproc)

make_driver() { # build folder, target, options for cmake
  local folder=$1 target=$2
  shift 2
  cmake -S . -B "$folder" -DEDGELLAMA_OUTPUT="$folder" "$@" >/dev/null
  cmake --build "$folder" --parallel "$jobs" --target "$target" | grep -E "error|warning|Linking" || true
  [ -x "$folder/$target" ]
}

installed() { # commands, Debian's packages: installs the packages if a command is missing and this user may
  local command missing=""
  for command in $1; do command -v "$command" >/dev/null || missing=$command; done
  [ -z "$missing" ] && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update >/dev/null && apt-get install --yes --no-install-recommends $2 >/dev/null && return
  fi
  echo "not checked: there is no $missing; install $2 (Debian) first"
  return 1
}

# Fill new memory with large numbers instead of zeros, so that a kernel that reads what nobody wrote gives wrong results.
export ASAN_OPTIONS=max_malloc_fill_size=1073741824:malloc_fill_byte=127

address() {
  make_driver "$build/sanitize-address" selftest -DEDGELLAMA_SELFTEST=ON -DEDGELLAMA_SANITIZE=address,undefined
  "$build/sanitize-address/selftest" kernels
}

thread() {
  make_driver "$build/sanitize-thread" selftest -DEDGELLAMA_SELFTEST=ON -DEDGELLAMA_SANITIZE=thread
  "$build/sanitize-thread/selftest" pool
}

aarch64() {
  installed "aarch64-linux-gnu-g++ qemu-aarch64-static" "g++-aarch64-linux-gnu qemu-user-static" || return 0
  make_driver "$build/aarch64" selftest -DEDGELLAMA_SELFTEST=ON -DEDGELLAMA_SANITIZE=undefined \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
  qemu-aarch64-static -cpu max -L /usr/aarch64-linux-gnu "$build/aarch64/selftest" kernels
}

fuzz() {
  installed clang++ "clang libclang-rt-dev" || return 0
  make_driver "$build/fuzz-arguments" fuzz_arguments -DEDGELLAMA_FUZZ=ON -DEDGELLAMA_ONLY=portable \
    -DEDGELLAMA_SANITIZE=address,undefined,fuzzer-no-link -DCMAKE_CXX_COMPILER=clang++
  local work=$build/fuzz/kernels log
  mkdir -p "$work/corpus"
  log=$work/log.txt
  if ! "$build/fuzz-arguments/fuzz_arguments" -seed=1 -max_len=256 -len_control=0 -timeout=30 \
    -max_total_time="${FUZZ_SECONDS:-30}" -artifact_prefix="$work/" "$work/corpus" >"$log" 2>&1; then
    grep -vE "^#|^INFO" "$log" | head -n 60
    return 1
  fi
  grep -E "DONE" "$log"
}

for check in "${@:-address thread aarch64 fuzz}"; do
  for one in $check; do
    echo "== $one"
    "$one"
  done
done
