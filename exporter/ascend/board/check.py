"""edgellama board-check: looks at the board, converts and runs the probe (tiny model), and reports what works there."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgellama import output_file
from edgellama.backend.ascend import npu_smi
from edgellama.backend.ascend.cann_log import explain
from edgellama.backend.ascend.device import Device, find
from edgellama.backend.ascend.requirements import missing_features
from edgellama.backend.lite_graph import import_lite
from edgellama.checkout import module_command
from edgellama.errors import UserError
from edgellama.kernels.ascend.chips import Chip, chip_of_soc

from ...progress import Progress
from ..convert_host import cann_version, lite_version, package_chips, packages
from .answers import ProbeResult, probe_results

TIMEOUT = 1800  # seconds for the run of the probe, so that a driver that hangs does not hang the command
OPERATOR_LISTS = "opp/built-in/op_impl/ai_core/tbe/config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgellama board-check`."""
    parser.add_argument("--device-id", type=int, default=0, metavar="N", help="NPU (default: %(default)s)")
    parser.add_argument(
        "--probe", type=Path, metavar="DIR", help="the folder that board-probe wrote (default: make it here)"
    )
    parser.add_argument("--json", type=Path, default=Path("build/board-check.json"), help="default: %(default)s")
    parser.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> None:
    """Run the command `board-check`. Raises UserError as `check` does."""
    progress = Progress()
    check(arguments.device_id, arguments.probe, arguments.json, progress)


def check(device_id: int, probe: Path | None, report: Path, progress: Progress) -> None:
    """Print the answers as a table, and write them with every measurement to `report` (JSON).

    Args:
        device_id: number of the NPU
        probe: the folder that board-probe wrote; None makes it here, which needs the exporter's packages
        report: the file to write; it is written in any case

    Raises UserError if there is no device, or if no target is for it.
    """
    report.parent.mkdir(parents=True, exist_ok=True)
    output_file.check_report(report)
    found = versions(os.environ)
    device, problem = None, ""
    try:
        device = find(device_id)
    except UserError as error:
        problem = str(error)
    chip = chip_of_soc(device.soc) if device else None
    found["device"] = vars(device) if device else problem
    kernels = listed_kernels(os.environ, chip) if chip else None
    conversion: dict[str, Any] | None = None
    stages: dict[str, Any] = {}
    if device and chip:
        conversion, stages = measure(device, chip, probe, progress)
    results = probe_results(chip, kernels, conversion, stages)
    show(found, results, progress)
    write_report(report, found, kernels, conversion, stages, results)
    progress.console.print(f"wrote {report}: please attach it to an issue, whatever the answers are", highlight=False)
    if device is None:
        raise UserError(f"no question could be answered: {problem}")
    if chip is None:
        raise UserError(f"device {device_id} is an {device.soc}, which no target of this release is for")


def versions(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what is installed, in words, by the name of the part; the words say if a part is missing."""
    cann = environment.get("ASCEND_HOME_PATH") or environment.get("ASCEND_TOOLKIT_HOME")
    try:
        table = npu_smi.read()
        driver = table.version if table else "npu-smi is not installed"
    except UserError as error:
        driver = str(error)
    package = packages(Path(cann), environment) if cann else []
    return {
        "host": f"{platform.machine()}, {platform.platform()}",
        "python": platform.python_version(),
        "driver": driver,
        "cann": f"{cann_version(Path(cann))} at {cann}" if cann else "not found: ASCEND_HOME_PATH is not set",
        "mindspore lite": _lite(),
        "operator package": f"{package[0]} for {', '.join(package_chips(package[0]))}" if package else "not installed",
    }


def _lite() -> str:
    """Return the version of MindSpore Lite and what the runtime misses in it, in words."""
    if find_spec("mindspore_lite") is None:
        return "not installed"
    try:
        missing = missing_features(import_lite())
    except UserError as error:
        return str(error)
    return lite_version() + (f", lacks {', '.join(missing)}" if missing else ", with device tensors")


def listed_kernels(environment: Mapping[str, str], chip: Chip) -> set[str] | None:
    """Return the operators that CANN's own lists name for the chip, or None if it has no such list."""
    cann = environment.get("ASCEND_OPP_PATH") or environment.get("ASCEND_HOME_PATH", "")
    folder = Path(cann) / OPERATOR_LISTS.removeprefix("opp/" if environment.get("ASCEND_OPP_PATH") else "")
    files = sorted((folder / chip.target).glob(f"aic-{chip.target}-ops-info*.json"))
    names: set[str] = set()
    for file in files:
        names |= set(json.loads(file.read_text(encoding="utf-8")))
    return names if files else None


def measure(
    device: Device, chip: Chip, probe: Path | None, progress: Progress
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Convert and run the probe. Return the outcome of the conversion, and the stages of measure.py.

    A failure does not raise: the outcome or the stage "stopped" says what failed.
    """
    from ..convert import ConvertOptions, convert

    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        try:
            folder = probe or make_probe(chip, Path(scratch) / "probe", progress)
            converted = convert(ConvertOptions(folder, device.soc, Path(scratch) / "converted"), progress)
        except UserError as error:
            finding = explain(str(error))
            operator = finding.operator if finding else None
            conversion = {"ok": False, "cause": str(error), "operator": operator}
            return conversion, {"stopped": {"cause": "its conversion failed"}}
        conversion = {"ok": True, "seconds": time.monotonic() - began}
        with progress.stage("Running the probe on the device"):
            return conversion, run_probe(converted, device.id)


def make_probe(chip: Chip, out: Path, progress: Progress) -> Path:
    """Export the probe to the folder `out` and return it. Raises UserError if the exporter's packages are missing."""
    if find_spec("mindspore") is None:
        raise UserError(
            "the probe cannot be made here: mindspore is not installed. Make it on the host that exports, with "
            f"`edgellama board-probe --target {chip.target}`, copy build/board-probe-{chip.target} here, and run "
            f"`edgellama board-check --probe build/board-probe-{chip.target}`"
        )
    # A separate process, because the libraries of mindspore and of MindSpore Lite cannot be loaded into one.
    command = [*module_command("edgellama"), "board-probe", "--target", chip.target, "--out", str(out)]
    with progress.stage("Exporting the probe"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"the probe could not be exported: {done.stderr.strip()[-2000:]}")
    return out


def run_probe(folder: Path, device: int | None) -> dict[str, Any]:
    """Run measure.py in a separate process. Return its stages by name, with a stage "stopped" if it did not finish.

    Args:
        device: number of the NPU; None runs a probe for a host, which the tests do.
    """
    command = [
        *module_command("edgellama.exporter.ascend.board.measure"),
        str(folder),
        *([str(device)] if device is not None else []),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        out, log, status = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        out, log, status = _text(error.stdout), _text(error.stderr), -1
    stages = {}
    for line in out.splitlines():
        if line.startswith("{"):
            stage = json.loads(line)
            stages[stage.pop("stage")] = stage
    if status != 0:
        found = explain(log)
        cause = str(found) if found else (log.strip().splitlines()[-1:] or [f"status {status}"])[0]
        stages["stopped"] = {"status": status, "cause": cause, "log": log[-20_000:]}
    return stages


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def show(found: Mapping[str, Any], results: list[ProbeResult], progress: Progress) -> None:
    """Print the versions that were found, and the answers."""
    console = progress.console
    for name, value in found.items():
        console.print(f"{name}: {value}", highlight=False, markup=False)
    rows = [(result.question, result.answer, result.evidence) for result in results]
    progress.table(("question", "answer", "evidence"), rows)


def write_report(
    path: Path,
    found: Mapping[str, Any],
    kernels: set[str] | None,
    conversion: Mapping[str, Any] | None,
    stages: Mapping[str, Any],
    results: list[ProbeResult],
) -> None:
    """Write the report. kernels, conversion, stages: as for probe_results; found: as `versions` returns it."""
    report = {
        "format_version": 1,
        "answers": [vars(result) for result in results],
        "versions": dict(found),
        "kernels": sorted(kernels) if kernels is not None else None,
        "conversion": conversion,
        "stages": stages,
    }
    output_file.write_report(path, report)
