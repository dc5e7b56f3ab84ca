"""Checks what a host needs to convert for Ascend: CANN, our operator package, a converter, disk space and memory.

One error lists everything that is missing.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from edgellama.backend.lite_graph import import_lite
from edgellama.errors import UserError
from edgellama.kernels.ascend.chips import Chip

VENDOR = "edgellama"
SET_ENV = "`source /usr/local/Ascend/ascend-toolkit/set_env.sh`"
PAGE = "kernels/ascend/BOARD.md"
# MindSpore Lite holds the weights three times: in its own graph, in CANN's graph and in the compiled model (its
# model_converter.cc). This was not measured on a host with CANN.
WEIGHT_COPIES = 3


@dataclass(frozen=True)
class Host:
    """A host that can convert.

    Attributes:
        cann, cann_version: CANN's folder and version
        converter: "python", or the path of converter_lite
        lite: the version of the MindSpore Lite that the converter belongs to
    """

    cann: Path
    cann_version: str
    converter: str
    lite: str


def inspect_host(chip: Chip, environment: Mapping[str, str] | None = None) -> Host:
    """Return what this host has. Raises UserError with everything that is missing and how to get it.

    Args:
        environment: variables; None is those of this process.
    """
    environment = os.environ if environment is None else environment
    missing: list[str] = []
    cann = _cann(environment, missing)
    if cann is None:
        missing.append(f"the operator package {VENDOR}: build and install it with `make kernels` once CANN is there")
    else:
        _operator_package(chip, cann, environment, missing)
    converter = _converter(environment, missing)
    if missing or cann is None or converter is None:
        listed = "\n".join(f"  - {line}" for line in missing)
        raise UserError(f"this host cannot convert for {chip.target}. Missing:\n{listed}\n{PAGE} has the steps")
    return Host(cann, cann_version(cann), *converter)


def cann_version(cann: Path) -> str:
    """Return the version that CANN's version.info states (Version=8.2...), or "unknown"."""
    for name in ("compiler/version.info", "runtime/version.info", "version.cfg", "ascend_toolkit_install.info"):
        path = cann / name
        if path.is_file() and (found := re.search(r"(?im)^\s*version\s*=\s*\[?([\w.:]+)", path.read_text())):
            return found[1].rpartition(":")[2]
    return "unknown"


def packages(cann: Path, environment: Mapping[str, str]) -> list[Path]:
    """Return the folders with an installed operator package of our vendor name, in CANN's order of search."""
    named = [Path(entry) for entry in environment.get("ASCEND_CUSTOM_OPP_PATH", "").split(":") if entry]
    opp = Path(environment.get("ASCEND_OPP_PATH") or cann / "opp")
    return [folder for folder in [*named, opp / "vendors" / VENDOR] if folder.name == VENDOR and folder.is_dir()]


def package_chips(package: Path) -> list[str]:
    """Return the compute units (as "ascend310b") that an installed operator package was built for."""
    config = package / "op_impl/ai_core/tbe/config"
    return sorted(folder.name for folder in config.iterdir() if folder.is_dir()) if config.is_dir() else []


def check_room(folder: Path, weights: int, meminfo: Path = Path("/proc/meminfo")) -> None:
    """Raise UserError if disk or memory cannot hold a conversion.

    Args:
        folder: where the result goes
        weights: bytes of the exported weights
        meminfo: the kernel's file; a host without it is not checked for memory
    """
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free, wanted = shutil.disk_usage(parent).free, 2 * weights  # the compiled model, and the copy that is written of it
    if free < wanted:
        raise UserError(
            f"{parent} has {free / 1e9:.1f} GB free; converting needs {wanted / 1e9:.1f} GB there. Set OUT= to a "
            "folder on another disk"
        )
    if not meminfo.is_file():
        return
    sizes = dict(re.findall(r"(?m)^(\w+):\s+(\d+) kB", meminfo.read_text()))
    memory = 1024 * (int(sizes.get("MemAvailable", 0)) + int(sizes.get("SwapFree", 0)))
    wanted = WEIGHT_COPIES * weights
    if memory < wanted:
        raise UserError(
            f"{memory / 1e9:.1f} GB of memory and swap are free; converting needs about {wanted / 1e9:.1f} GB "
            f"({WEIGHT_COPIES} copies of the weights). Add swap, or convert on a larger host: it needs no NPU"
        )


def _cann(environment: Mapping[str, str], missing: list[str]) -> Path | None:
    """Return CANN's folder; append to `missing` what it lacks."""
    named = environment.get("ASCEND_HOME_PATH") or environment.get("ASCEND_TOOLKIT_HOME")
    if not named:
        missing.append(
            f"CANN: neither ASCEND_HOME_PATH nor ASCEND_TOOLKIT_HOME is set. Install the CANN toolkit and run {SET_ENV}"
        )
        return None
    cann = Path(named)
    if not cann.is_dir():
        missing.append(f"CANN: {cann} does not exist (from the environment). Run {SET_ENV} of the installed version")
        return None
    if not (cann / "compiler").is_dir():
        missing.append(f"CANN: {cann} has no folder compiler. Install the toolkit, not the runtime (nnrt) alone")
    return cann


def _operator_package(chip: Chip, cann: Path, environment: Mapping[str, str], missing: list[str]) -> None:
    """Append to `missing` if the operator package is not installed or was built for other chips."""
    found = packages(cann, environment)
    if not found:
        missing.append(
            f"the operator package {VENDOR}: not under CANN's opp/vendors nor in ASCEND_CUSTOM_OPP_PATH. Build and "
            "install it with `make kernels`. If it is installed in another folder, source its bin/set_env.bash"
        )
    elif chip.target not in (chips := package_chips(found[0])):
        missing.append(
            f"the operator package for {chip.target}: {found[0]} was built for {', '.join(chips) or 'no chip'}. "
            f'Build it again: `kernels/ascend/build.sh --chips "{chip.target}"`'
        )


def _converter(environment: Mapping[str, str], missing: list[str]) -> tuple[str, str] | None:
    """Return the converter and its version, as Host holds them; append to `missing` if there is none."""
    problem = _lite_problem()
    if problem is None:
        return "python", lite_version()
    if tool := shutil.which("converter_lite", path=environment.get("PATH")):
        return tool, packaged_version(Path(tool))
    missing.append(
        f"MindSpore Lite's converter: {problem}, and converter_lite is not in PATH. Install the release for Ascend, "
        "2.4.1 or later"
    )
    return None


def _lite_problem() -> str | None:
    """Return why the Python package cannot convert, or None if it can."""
    if find_spec("mindspore_lite") is None:
        return "the Python package mindspore_lite is not installed"
    lite = import_lite()
    if "fmk_type" not in inspect.signature(lite.Converter.convert).parameters:
        return f"mindspore_lite {lite_version()} is too old (its convert() takes no fmk_type)"
    try:
        lite.Converter()
    except RuntimeError:  # runtime.lite installs such a build on hosts without a wheel
        return f"mindspore_lite {lite_version()} was built without its converter"
    return None


def packaged_version(tool: Path) -> str:
    """Return the version of the MindSpore Lite that a converter_lite belongs to, or "unknown".

    It stands only in the name of the folder that the package unpacks to (mindspore-lite-2.7.0-linux-x64).
    """
    found = (re.match(r"mindspore-lite-(\d[\w.]*)", folder.name) for folder in tool.resolve().parents)
    return next((match[1] for match in found if match), "unknown")


def lite_version() -> str:
    """Return the version of the installed mindspore_lite, or "unknown" if it was not installed as a package."""
    try:
        return metadata.version("mindspore-lite")
    except metadata.PackageNotFoundError:
        return "unknown"
