#!/usr/bin/env bash
# Build the operator package (custom_opp_<os>_<arch>.run) and install it.
#
#   build.sh [--chips "ascend310p;ascend310b;ascend910b"] [--install-path DIR | --no-install] [--build-dir DIR]
#
# Source the environment of CANN's toolkit first; no NPU is needed. If something is missing, the script lists all of it
# and exits with status 2. Without --install-path the package goes under CANN's opp/vendors. With it, source
# DIR/vendors/edgellama/bin/set_env.bash before you convert or run a model. The script builds in DIR/edgellama-package of
# --build-dir (default: build); it deletes that folder first, and touches nothing else in DIR.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
build_dir="$here/../../build"
known="ascend310p ascend310b ascend910b"  # the targets of chips.py; a test compares them
modules="compiler/tikcpp/ascendc_kernel_cmake"  # CANN's CMake modules for operator packages
chips="$known" install_path="" install=yes

usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

# Print the version that the CANN in folder $1 states. Drops the package's own version in front of it
# (version=[7.1.0.1:8.0.RC1]).
version_of() {
    local file version
    for file in compiler/version.info version.cfg; do
        [ -f "$1/$file" ] || continue
        version="$(sed -n 's/^ *[Vv]ersion *= *\[\{0,1\}\([A-Za-z0-9_.:]*\).*/\1/p' "$1/$file" | sed -n '1s/.*://;1p')"
        [ -z "$version" ] || { echo "$version"; return; }
    done
    echo unknown
}

while [ $# -gt 0 ]; do
    case "$1" in
        --chips) [ $# -ge 2 ] || { usage >&2; exit 2; }; chips="$2"; shift 2 ;;
        --install-path) [ $# -ge 2 ] || { usage >&2; exit 2; }; install_path="$2"; shift 2 ;;
        --no-install) install=no; shift ;;
        --build-dir) [ -n "${2:-}" ] || { usage >&2; exit 2; }; build_dir="$2"; shift 2 ;;
        -h|--help) usage; exit 0 ;;
        *) echo "build.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
done

IFS='; ' read -r -a asked <<< "$chips"
for chip in "${asked[@]:-}"; do
    case " $known " in
        *" $chip "*) ;;
        *) echo "build.sh: --chips names '$chip'; the kernels are for ${known// /, }. Separate several with ';'" >&2; exit 2 ;;
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
elif [ ! -d "$cann/$modules" ]; then
    missing+=("CANN: $cann has no $modules, the CMake modules for operator packages. Install \
the toolkit, not only the runtime, in version 8.3 or later")
elif [ ! -f "$cann/$modules/asc-config.cmake" ] && [ ! -f "$cann/$modules/ASCConfig.cmake" ]; then
    missing+=("CANN: $cann is version $(version_of "$cann"), and its $modules has no asc-config.cmake, which CANN has \
since 8.3. Install the toolkit in version 8.3 or later and run: source /usr/local/Ascend/ascend-toolkit/set_env.sh")
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
    echo "(On a host without CANN the kernels still run on the CPU stand-in: pytest tests/ascend/test_attention.py)" >&2
    exit 2
fi

build="$build_dir/edgellama-package"
rm -rf "$build"
mkdir -p "$build"
build="$(cd "$build" && pwd)"
export ASCEND_HOME_PATH="$cann"  # CANN's modules read it
units="$(IFS=';'; echo "${asked[*]}")"
(cd "$here" && cmake -S "$here" -B "$build" --preset=default "-DASCEND_CANN_PACKAGE_PATH=$cann" \
    "-DASCEND_AUTOGEN_PATH=$build/autogen" "-DASCEND_COMPUTE_UNIT=$units")
cmake --build "$build" --target binary package -j"$(nproc)"

package="$(find "$build" -maxdepth 1 -name 'custom_opp_*.run' | head -n 1)"
if [ -z "$package" ]; then
    echo "The build wrote no custom_opp_*.run to $build. Its last messages say why." >&2
    exit 1
fi
echo "built $package"
[ "$install" = yes ] || exit 0
if [ -n "$install_path" ]; then
    "$package" --quiet --install-path="$install_path"
    echo "installed; before you convert or run a model: source $install_path/vendors/edgellama/bin/set_env.bash"
else
    "$package" --quiet
    echo "installed under CANN's opp/vendors/edgellama"
fi
