"""The Ascend operator package: its definitions match kernels.reference, its files match each other; its build."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgellama.kernels import reference
from edgellama.kernels.ascend.chips import CHIPS, CUSTOM_OPERATORS
from support.operator_package import PACKAGE, declared, snake

# Each operator's function in kernels.reference, and its outputs that are not inputs.
OPERATORS = {
    "FusedAttention": (reference.fused_attention, ["out"]),
    "SplitAttention": (reference.split_attention, ["out", "partial"]),
    "JoinAttention": (reference.join_attention, ["joined"]),
    "LmHead": (reference.lm_head, ["logits"]),
    "QuantLinear": (reference.quant_linear, ["y"]),
}


def reference_names(operator: str, kind: inspect._ParameterKind) -> list[str]:
    """Returns parameters of the definition, without those that the operators of Ascend do not have.

    These are tensors by keyword (scales of int8 caches, norms of queries and keys), and the settings of those norms, of
    soft caps and of queries that are scaled by position: the graph computes the norms, and an export with one of the
    others is refused.
    """
    parameters = inspect.signature(OPERATORS[operator][0]).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    absent = ("softcap", "norm_eps", "norm_after_rope", "query_beta", "query_period")
    named = [p for p in parameters if p.kind is kind and p.name not in absent]
    return [p.name for p in named if not (kind is keyword and "Array" in str(p.annotation))]


@pytest.mark.parametrize("operator", OPERATORS)
def test_definition_has_the_reference_s_names_in_its_order(operator: str) -> None:
    inputs = declared(operator, "Input")
    assert inputs == reference_names(operator, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert declared(operator, "Attr") == reference_names(operator, inspect.Parameter.KEYWORD_ONLY)
    assert "type" not in declared(operator, "Attr")  # the converter would treat it as the name of a built-in operator
    # An array that the reference writes in place is an output of the same name.
    mutated = [name for name in inputs if name in ("k_cache", "v_cache")]
    assert declared(operator, "Output") == [*OPERATORS[operator][1], *mutated]


@pytest.mark.parametrize("operator", OPERATORS)
def test_each_operator_uses_the_definition_and_has_its_kernel(operator: str) -> None:
    host = (PACKAGE / f"op_host/{snake(operator)}.cpp").read_text()
    assert f'kName = "{operator}"' in host and f"OP_ADD({operator});" in host
    kernel = (PACKAGE / f"op_kernel/{snake(operator)}.cpp").read_text()
    head = re.search(r'extern "C" __global__ __aicore__ void (\w+)\((.*?)\)', kernel, re.S)
    assert head is not None and head[1] == snake(operator)
    inputs = declared(operator, "Input")
    outputs = [f"{name}_ref" if name in inputs else name for name in declared(operator, "Output")]
    assert re.findall(r"GM_ADDR (\w+)", head[2]) == [*inputs, *outputs, "workspace", "tiling"]
    assert f"{snake(operator)}.cpp" in (PACKAGE / "op_host/CMakeLists.txt").read_text()
    assert operator in CUSTOM_OPERATORS


def test_the_folder_that_is_copied_holds_all_that_the_kernels_include() -> None:
    """CANN compiles a copy of the files in SRC_BASE with these suffixes, or only those of npu_op_kernel_sources."""
    cmake = (PACKAGE / "op_kernel/CMakeLists.txt").read_text()
    commands = re.sub(r"(?m)#.*$", "", cmake)
    assert "npu_op_kernel_sources" not in commands and "SRC_BASE ${CMAKE_CURRENT_SOURCE_DIR}/" in commands
    copied = {p.name for p in (PACKAGE / "op_kernel").iterdir() if p.suffix in (".h", ".hpp", ".cpp", ".c")}
    reached, waiting = set(), [f"{snake(operator)}.cpp" for operator in OPERATORS]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        if name in copied:
            waiting += set(re.findall(r'#include "(.+?)"', (PACKAGE / "op_kernel" / name).read_text())) - reached
    assert reached - copied == {"kernel_operator.h", "lib/matmul_intf.h", "kernel_tiling/kernel_tiling.h"}  # CANN's
    assert copied <= reached


def test_matmul_s_tiling_gets_the_template_of_the_kernels() -> None:
    """The kernels use Matmul's default template, Norm (0); its tiling assumes MDL unless it gets another one."""
    assert "SetMatmulConfigParams(0)" in (PACKAGE / "op_host/host.h").read_text()
    kernels = {path.name: path.read_text() for path in (PACKAGE / "op_kernel").glob("*.h")}
    assert [name for name, text in kernels.items() if "AscendC::Matmul<" in text] == ["cube_matmul.h"]
    found = re.findall(r"\bAscendC::Matmul<(.+)>;", kernels["cube_matmul.h"])
    assert found == ["A, B, C, C, kMatmulConfig", "A, B, C, C"]
    assert "kMatmulConfig = GetNormalConfig(" in kernels["cube_matmul.h"]


def test_every_launch_reserves_the_workspace_that_the_wrapper_skips() -> None:
    host = "".join(path.read_text() for path in (PACKAGE / "op_host").glob("*"))
    assert re.findall(r"workspace\[0\] = (.+);", host) == [
        "static_cast<size_t>(WorkspaceBytes(limits, kernelBytes, platform.GetLibApiWorkSpaceSize()))"
    ]
    assert host.count("GetWorkspaceSizes") == 1 and host.count("return SetLaunch(") == 5


def test_presets_name_the_chips_that_the_definition_configures() -> None:
    preset = json.loads((PACKAGE / "CMakePresets.json").read_text())["configurePresets"][0]["cacheVariables"]
    configured = re.findall(r'AddConfig\("(\w+)"\)', (PACKAGE / "op_host/host.h").read_text())
    assert preset["ASCEND_COMPUTE_UNIT"]["value"].split(";") == configured == list(CHIPS)
    assert preset["vendor_name"]["value"] == "edgellama"
    assert f'known="{" ".join(configured)}"' in (PACKAGE / "build.sh").read_text()


def test_kernels_know_the_chip_in_one_place() -> None:
    switched = {p.name for p in (PACKAGE / "op_kernel").glob("*") if "__NPU_ARCH__" in p.read_text()}
    assert switched == {"chip.h"}


# --- build.sh ---


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with only the programs that the script calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "sed", "dirname", "find", "head", "nproc", "rm", "mkdir", "make"):
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def add_tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
    (folder / name).chmod(0o755)


def build(tools: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ASCEND", "CXX"))}
    return subprocess.run(
        [str(tools / "bash"), str(PACKAGE / "build.sh"), *arguments],
        capture_output=True,
        text=True,
        env={**clean, "PATH": str(tools), **environment},
        check=False,
    )


MODULES = "compiler/tikcpp/ascendc_kernel_cmake"


def test_build_reports_everything_that_is_missing_at_once(tools: Path) -> None:
    done = build(tools)
    assert done.returncode == 2
    assert "neither ASCEND_HOME_PATH nor ASCEND_TOOLKIT_HOME is set" in done.stderr
    assert "cmake: not found" in done.stderr and "C++ compiler: g++ not found" in done.stderr


def test_build_refuses_a_cann_that_is_not_there_or_not_whole(tools: Path, tmp_path: Path) -> None:
    add_tool(tools, "cmake", "echo cmake version 3.16.3")
    add_tool(tools, "g++", "true")
    missing = build(tools, ASCEND_HOME_PATH=str(tmp_path / "gone"))
    assert missing.returncode == 2 and "gone does not exist" in missing.stderr
    assert "version 3.16 found, 3.19 or later is needed" in missing.stderr
    runtime_only = build(tools, ASCEND_TOOLKIT_HOME=str(tmp_path))
    assert runtime_only.returncode == 2 and f"no {MODULES}" in runtime_only.stderr


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        ("compiler/version.info", "Version=8.0.0.1\nversion_dir=8.0.RC1\n", "8.0.0.1"),
        (
            "version.cfg",
            "# version: 1.0\nrunning_version=[7.3.0:8.0.RC2]\nversion=[7.1.0.1:8.0.RC1]\n",
            "8.0.RC1",
        ),
        ("readme", "", "unknown"),
    ],
)
def test_build_reports_a_cann_that_is_too_old(tools: Path, tmp_path: Path, file: str, text: str, version: str) -> None:
    """Its folder of CMake modules exists, but without the one for find_package(ASC)."""
    add_tool(tools, "cmake", "echo cmake version 3.28.1")
    add_tool(tools, "g++", "true")
    (tmp_path / "cann" / MODULES).mkdir(parents=True)
    (tmp_path / "cann" / file).write_text(text)
    done = build(tools, ASCEND_HOME_PATH=str(tmp_path / "cann"))
    assert done.returncode == 2
    assert f"is version {version}, and its {MODULES} has no asc-config.cmake" in done.stderr
    assert "in version 8.3 or later and run: source" in done.stderr


@pytest.mark.parametrize("chips", ["ascend310", "ascend310b;ascend", "ascend310b,ascend310p", ""])
def test_build_knows_its_chips(tools: Path, chips: str) -> None:
    done = build(tools, "--chips", chips)
    assert done.returncode == 2 and "the kernels are for ascend310p, ascend310b, ascend910b" in done.stderr


def test_build_installs_the_package_it_built(tools: Path, tmp_path: Path) -> None:
    """With a fake CANN and a fake cmake: checks the commands, their order and their arguments."""
    cann, log, out = tmp_path / "cann", tmp_path / "log", tmp_path / "mine/edgellama-package"
    (cann / MODULES).mkdir(parents=True)
    (cann / MODULES / "asc-config.cmake").write_text("")
    out.mkdir(parents=True)
    (out / "left from before").write_text("")
    (out.parent / "notes").write_text("not the script's")
    add_tool(tools, "g++", "true")
    run_file = out / "custom_opp_linux_x86_64.run"
    add_tool(
        tools,
        "cmake",
        f'if [ "$1" = --version ]; then echo cmake version 3.28.1; exit; fi\n'
        f'echo "cmake $* in $ASCEND_HOME_PATH" >> {log}\n'
        f'[ "$1" = --build ] || exit 0\n'
        f"printf '#!%s\\necho \"package $*\" >> {log}\\n' {shutil.which('bash')} > {run_file}\n"
        f"/bin/chmod +x {run_file}",
    )
    done = build(
        tools,
        "--chips",
        "ascend310b",
        "--install-path",
        str(tmp_path / "opp"),
        "--build-dir",
        str(out.parent),
        ASCEND_TOOLKIT_HOME=str(cann),
    )
    assert done.returncode == 0, done.stderr
    configured, built, installed = log.read_text().splitlines()
    assert "--preset=default" in configured and f"-DASCEND_CANN_PACKAGE_PATH={cann}" in configured
    assert configured.endswith(f"-DASCEND_COMPUTE_UNIT=ascend310b in {cann}")  # CANN's modules read the variable
    assert built.startswith(f"cmake --build {out} --target binary package")
    assert installed == f"package --quiet --install-path={tmp_path / 'opp'}"
    assert "vendors/edgellama/bin/set_env.bash" in done.stdout
    assert (out.parent / "notes").read_text() == "not the script's"
    assert [path.name for path in out.iterdir()] == [run_file.name]
