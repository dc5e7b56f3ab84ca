#!/usr/bin/env bash
# Builds the operator package (custom_opp_<os>_<arch>.run) and installs it.
#
#   build.sh [--chips "ascend310p;ascend310b;ascend910b"] [--install-path DIR | --no-install] [--build-dir DIR]
#
# Needs CANN's toolkit with its environment sourced; no NPU. Everything missing is listed at once; exit code 2.
# Without --install-path the package goes under CANN's opp/vendors; with it, source DIR/vendors/edgellama/bin/set_env.bash
# before converting or running a model.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
build="$here/../../build/ascend-package"
chips="" install_path="" install=yes

usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

while [ $# -gt 0 ]; do
    case "$1" in
        --chips) [ $# -ge 2 ] || { usage >&2; exit 2; }; chips="$2"; shift 2 ;;
        --install-path) [ $# -ge 2 ] || { usage >&2; exit 2; }; install_path="$2"; shift 2 ;;
        --no-install) install=no; shift ;;
        --build-dir) [ $# -ge 2 ] || { usage >&2; exit 2; }; build="$2"; shift 2 ;;
        -h|--help) usage; exit 0 ;;
        *) echo "build.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
done

missing=()
cann="${ASCEND_HOME_PATH:-${ASCEND_TOOLKIT_HOME:-}}"
if [ -z "$cann" ]; then
    missing+=("CANN: neither ASCEND_HOME_PATH nor ASCEND_TOOLKIT_HOME is set. Install the CANN toolkit (8.3 or later) \
and run: source /usr/local/Ascend/ascend-toolkit/set_env.sh")
elif [ ! -d "$cann" ]; then
    missing+=("CANN: $cann does not exist (from ASCEND_HOME_PATH or ASCEND_TOOLKIT_HOME). Source the set_env.sh of the \
installed version")
elif [ ! -d "$cann/compiler/tikcpp/ascendc_kernel_cmake" ]; then
    missing+=("CANN: $cann has no compiler/tikcpp/ascendc_kernel_cmake, the CMake modules for operator packages. Install \
the toolkit, not the runtime alone, in version 8.3 or later")
fi
if ! command -v cmake >/dev/null; then
    missing+=("cmake: not found; 3.19 or later is needed (pip install cmake)")
else
    version="$(cmake --version | sed -n '1s/[^0-9]*\([0-9]*\.[0-9]*\).*/\1/p')"
    if [ "${version%%.*}" -lt 3 ] || { [ "${version%%.*}" -eq 3 ] && [ "${version#*.}" -lt 19 ]; }; then
        missing+=("cmake: version $version found, 3.19 or later is needed (pip install cmake)")
    fi
fi
if ! command -v "${CXX:-g++}" >/dev/null; then
    missing+=("C++ compiler: ${CXX:-g++} not found; install g++ or set CXX")
fi
if ! command -v make >/dev/null; then
    missing+=("make: not found; install it")
fi

if [ ${#missing[@]} -gt 0 ]; then
    echo "The Ascend operator package cannot be built here. Missing:" >&2
    printf '  - %s\n' "${missing[@]}" >&2
    echo "(On a host without CANN the kernels still run on the CPU stand-in: pytest tests/test_ascend_attention.py)" >&2
    exit 2
fi

rm -rf "$build"
mkdir -p "$build"
build="$(cd "$build" && pwd)"
configure=(cmake -S "$here" -B "$build" --preset=default "-DASCEND_CANN_PACKAGE_PATH=$cann"
           "-DASCEND_AUTOGEN_PATH=$build/autogen")
[ -z "$chips" ] || configure+=("-DASCEND_COMPUTE_UNIT=$chips")
(cd "$here" && "${configure[@]}")
cmake --build "$build" --target binary package -j"$(nproc)"

package="$(find "$build" -maxdepth 1 -name 'custom_opp_*.run' | head -n 1)"
if [ -z "$package" ]; then
    echo "The build ended without custom_opp_*.run in $build; its last messages say why." >&2
    exit 1
fi
echo "built $package"
[ "$install" = yes ] || exit 0
if [ -n "$install_path" ]; then
    "$package" --quiet --install-path="$install_path"
    echo "installed; before converting or running: source $install_path/vendors/edgellama/bin/set_env.bash"
else
    "$package" --quiet
    echo "installed under CANN's opp/vendors/edgellama"
fi
