"""board-check: the tiny model really runs on this host's CPU, the results use SIMULATED measurements, and the command
runs on a host without a board."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgellama.__main__ import COMMANDS
from edgellama.backend.ascend.device import Device
from edgellama.errors import UserError
from edgellama.exporter.ascend.board import check as command
from edgellama.exporter.ascend.board import measure, tiny_model
from edgellama.exporter.ascend.board.answers import ProbeResult, probe_results
from edgellama.exporter.graph_spec import Shape
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.onnx_twin.run import twin_engine
from edgellama.exporter.opsets.ascend_model_checks import attention_parts
from edgellama.exporter.progress import PlainConsole, Progress
from edgellama.kernels.ascend.chips import CHIPS, OPERATORS
from support.ascend_artifact import ascend_manifest
from support.child import REPOSITORY, run_child

MAKE = """
import sys
from pathlib import Path
from edgellama.exporter.ascend.board.tiny_model import make
from edgellama.exporter.opsets.ascend_model_checks import attention_parts
from edgellama.exporter.progress import Progress
make("cpu", Path(sys.argv[1]) / "cpu", Progress(), "fp32")
for target in ("ascend310b", "ascend310p"):
    make(target, Path(sys.argv[1]) / target, Progress())
for weights in ("int8", "int4"):
    make("ascend310b", Path(sys.argv[1]) / weights, Progress(), weights)
"""


# --- the probe, for real: made by the exporter, run by the engine with the cpu op set's in-place attention ---


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the probe for the cpu target; ascend310b, with each weight format; ascend310p, which is split."""
    folder = tmp_path_factory.mktemp("probe")
    run_child("-c", MAKE, str(folder))
    return folder


@pytest.fixture(scope="module")
def cpu_probe(probes: Path) -> Path:
    return probes / "cpu"


def test_the_probe_s_logits_and_caches_are_right_where_they_are_known_to_be(cpu_probe: Path) -> None:
    stages = command.run_probe(cpu_probe, None)
    assert "stopped" not in stages
    for name in ("prefill", "decode"):
        assert stages[name]["relative"] < 1e-4 and stages[name]["agreement"] == 1 and stages[name]["finite"]
    assert stages["cache"] == {
        "rows_written": 1128,
        "rows_expected": 1128,
        "rows_spoiled": 0,
    }  # 282 tokens, 2 x k and v
    assert set(stages["gears"]) == {"1", "4", "16"}
    found = {answer.question: answer.answer for answer in probe_results(None, None, None, stages)}
    assert list(found.values()) == ["unknown", "unknown", "yes", "yes", "yes", "unknown"]


@pytest.mark.parametrize("probe", ["ascend310b", "ascend310p", "int8", "int4"])
def test_the_probe_for_a_board_would_pass_on_a_board_that_computes_as_defined(
    probe: str, probes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs the graph that a board converts as its ONNX twin, with the operators of kernels/reference.py."""
    monkeypatch.setattr(measure, "Engine", lambda artifact, device_id: twin_engine(artifact))
    measure.run(probes / probe, None)
    stages = {stage.pop("stage"): stage for stage in map(json.loads, capsys.readouterr().out.splitlines())}
    assert stages["cache"] == {"rows_written": 1128, "rows_expected": 1128, "rows_spoiled": 0}
    found = probe_results(B310, LISTED, CONVERTED, stages)
    assert [answer.answer for answer in found] == ["yes", "yes", "yes", "yes", "yes", "unknown"]


@pytest.mark.parametrize("target", ["ascend310p", "ascend910b"])
def test_the_probe_splits_its_attention_where_a_chip_has_several_cores(target: str) -> None:
    """The longer prompt fills every part: a part has a multiple of 16 positions."""
    config = LlamaConfig.from_dict(tiny_model.CONFIG)
    shape = Shape(tiny_model.ROWS, 16, tiny_model.CONTEXT, "fp16", "float16", target)
    parts = attention_parts(config, shape, 0)
    share = -(-max(tiny_model.PROMPTS) // (16 * parts)) * 16
    assert parts > 1 and (parts - 1) * share < max(tiny_model.PROMPTS)


def test_a_run_that_ends_early_keeps_what_was_seen(cpu_probe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    stages = command.run_probe(tmp_path / "empty", None)
    assert set(stages) == {"stopped"} and "no manifest.json" in stages["stopped"]["cause"]


# --- the answers, on SIMULATED measurements of a board where all is well, and of boards where something is not ---

WELL: dict[str, Any] = {
    "load": {"seconds": 3.0, "taken": 9_000_000, "weights": 1_000_000, "caches": 2_000_000},
    "prefill": {"relative": 2e-3, "agreement": 1.0, "finite": True},
    "cache": {"rows_written": 104, "rows_expected": 104, "rows_spoiled": 0},
    "decode": {"relative": 3e-3, "agreement": 1.0, "finite": True},
    "gears": {str(b): {"call_ms": 1.0, "switch_ms": 0.2} for b in (1, 4, 16)},
}
CONVERTED = {"ok": True, "seconds": 40.0}
B310 = CHIPS["ascend310b"]
LISTED = {OPERATORS[name][0] for name in B310.operators if OPERATORS[name]} | {"RmsNorm"}
KERNEL, MINDIR, IN_PLACE, GEARS, NUMBERS, MEMORY = range(6)


def changed(**stages: Any) -> dict[str, Any]:
    """Returns WELL with some values of some stages replaced; None removes a stage."""
    found = copy.deepcopy(WELL)
    for name, values in stages.items():
        if values is None:
            del found[name]
        else:
            found.setdefault(name, {}).update(values)
    return found


def test_a_board_where_everything_works() -> None:
    found = probe_results(B310, LISTED, CONVERTED, WELL)
    assert [answer.answer for answer in found] == ["yes"] * 6
    assert "the rest 6.0" in found[MEMORY].evidence and "fused ones: RmsNorm" in found[KERNEL].evidence
    assert "16 tokens: 1.00 ms, switch 0.20 ms" in found[GEARS].evidence


@pytest.mark.parametrize(
    ("stages", "which", "answer", "evidence"),
    [
        ({"cache": {"rows_written": 0}}, IN_PLACE, "no", "the writes went to a copy"),
        ({"cache": {"rows_written": 60}}, IN_PLACE, "no", "60 of 104 rows"),
        ({"cache": {"rows_spoiled": 3}}, IN_PLACE, "no", "3 were written outside them"),
        ({"decode": {"relative": 0.7}}, IN_PLACE, "no", "decode differs by 7.0e-01"),
        ({"decode": {"relative": 0.7}}, NUMBERS, "no", "decode: 7.0e-01"),
        ({"decode": {"finite": False}}, NUMBERS, "no", "NaN or infinite"),
        ({"prefill": {"relative": 0.5}}, GEARS, "no", "switch 0.20 ms"),
        ({"load": {"taken": 0}}, MEMORY, "unknown", "did not change"),
        (
            {"decode": None, "gears": None, "stopped": {"cause": "EZ9999: inner error"}},
            IN_PLACE,
            "yes",
            "decode: the probe stopped before this: EZ9999",
        ),
        ({"decode": None, "gears": None, "stopped": {"cause": "x"}}, NUMBERS, "no", "prefill: 2.0e-03"),
        ({"gears": None, "stopped": {"cause": "device lost"}}, GEARS, "unknown", "device lost"),
    ],
)
def test_a_board_where_one_thing_fails(stages: dict[str, Any], which: int, answer: str, evidence: str) -> None:
    found = probe_results(B310, LISTED, CONVERTED, changed(**stages))[which]
    assert found.answer == answer and evidence in found.evidence


@pytest.mark.parametrize(
    ("conversion", "answer", "evidence"),
    [
        (None, "unknown", "not converted"),
        ({"ok": False, "cause": "operator Square is not supported", "operator": "Square"}, "yes", "failed later"),
        ({"ok": False, "cause": "cannot read the graph's MindIR version", "operator": None}, "no", "MindIR version"),
        ({"ok": False, "cause": "killed by signal 9", "operator": None}, "unknown", "killed by signal 9"),
    ],
)
def test_the_conversion_answers_whether_the_mindir_is_read(conversion: Any, answer: str, evidence: str) -> None:
    found = probe_results(B310, LISTED, conversion, {})[MINDIR]
    assert found.answer == answer and evidence in found.evidence


def test_a_chip_without_a_kernel_that_is_needed() -> None:
    found = probe_results(B310, LISTED - {"GatherV2", "Square"}, CONVERTED, WELL)[KERNEL]
    assert found.answer == "no" and "missing: GatherV2 or Gather, Square;" in found.evidence


def test_fused_operators_are_needed_only_where_they_are_used() -> None:
    assert probe_results(B310, LISTED, None, {})[KERNEL].answer == "yes"
    assert probe_results(B310, LISTED - {"RmsNorm"}, None, {})[KERNEL].answer == "yes"
    found = probe_results(CHIPS["ascend310p"], LISTED - {"RmsNorm"}, None, {})[KERNEL]
    assert (
        found.answer == "no" and "missing: RmsNorm;" in found.evidence
    )  # and not the operator of former int8 artifacts


# --- the command ---


def test_cann_s_operator_lists_are_read_for_the_chip(tmp_path: Path) -> None:
    """SIMULATED files at the paths of CANN's, with one object per operator."""
    chip = B310
    folder = tmp_path / "opp/built-in/op_impl/ai_core/tbe/config/ascend310b"
    folder.mkdir(parents=True)
    assert command.listed_kernels({"ASCEND_HOME_PATH": str(tmp_path)}, chip) is None
    (folder / "aic-ascend310b-ops-info.json").write_text(json.dumps({"Add": {}, "Cast": {}}))
    (folder / "aic-ascend310b-ops-info-nn.json").write_text(json.dumps({"Square": {}}))
    assert command.listed_kernels({"ASCEND_HOME_PATH": str(tmp_path)}, chip) == {"Add", "Cast", "Square"}
    assert command.listed_kernels({"ASCEND_OPP_PATH": str(tmp_path / "opp")}, chip) == {"Add", "Cast", "Square"}


def test_a_board_that_cannot_convert_still_gets_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is SIMULATED. This host has no CANN, so the conversion is refused, and the report has the reason."""
    monkeypatch.setattr(command, "find", lambda _: Device(0, "Ascend310B4", 4 << 30, 8 << 30, "npu-smi"))
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    ascend_manifest(tmp_path / "probe", converted=None)
    (tmp_path / "probe/convert.ini").write_text("[acl_init_options]\nge.socVersion=Ascend310B1\n")
    report = tmp_path / "out/report.json"
    with Path(os.devnull).open("w") as nowhere:
        command.check(0, tmp_path / "probe", report, Progress(Console(file=nowhere)))
    found = json.loads(report.read_text())
    assert found["versions"]["device"]["soc"] == "Ascend310B4"
    assert found["conversion"]["ok"] is False and "ASCEND_HOME_PATH" in found["conversion"]["cause"]
    assert [answer["answer"] for answer in found["answers"]] == ["unknown"] * 6
    assert set(found["answers"][0]) == set(ProbeResult.__dataclass_fields__)


def test_a_chip_without_a_target_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find", lambda _: Device(0, "Ascend910B", 1, 2, "acl"))
    with (
        Path(os.devnull).open("w") as nowhere,
        pytest.raises(UserError, match=r"device 0 is an Ascend910B, which no target of this release is for"),
    ):
        command.check(0, None, tmp_path / "report.json", Progress(Console(file=nowhere)))


def test_on_this_host_without_a_board_board_check_reports_it(tmp_path: Path) -> None:
    """The real command on this host ends with exit status 2, and still writes a report."""
    report = tmp_path / "report.json"
    done = run_child("-m", "edgellama", "board-check", "--json", str(report), status=None)
    if done.returncode == 0:
        pytest.skip("this host has an NPU")
    assert done.returncode == 2
    assert "error: no question could be answered: no Ascend device was found" in done.stderr
    assert {answer["answer"] for answer in json.loads(report.read_text())["answers"]} == {"unknown"}


# --- what a board needs ---


ABSENT = ("mindspore", "transformers", "safetensors", "gguf", "onnx", "torch", "huggingface_hub", "ml_dtypes", "rich")
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))\n"


def test_convert_and_board_check_need_none_of_the_exporter_s_packages() -> None:
    modules = ("ascend.convert", "ascend.board.check", "ascend.board.measure")
    script = "import " + ", ".join(f"edgellama.exporter.{module}" for module in modules)
    run_child("-c", WITHOUT + script)


def run_without(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs the exporter's command line without the packages that it needs."""
    script = f"{WITHOUT}from edgellama.__main__ import main\nsys.exit(main({arguments!r}))"
    return run_child("-c", script, status=None)


def test_board_check_without_rich_prints_plain_text(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run_without(["board-check", "--json", str(report)])
    if done.returncode == 0:
        pytest.skip("this host has an NPU")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: no question could be answered: no Ascend device was found" in done.stderr
    for result in json.loads(report.read_text())["answers"]:
        lines = [f"{name}: {result[key]}" for name, key in zip(("question", "answer", "evidence"), result, strict=True)]
        assert "\n".join(lines) in done.stderr


def test_stages_and_bars_without_rich_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(PlainConsole())
    with progress.stage("Exporting"), progress.running("Converting") as show, progress.bytes("Writing", 10**6) as done:
        show("a line of the converter")
        done(10**6)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["Exporting ...", "Converting ..."]
    assert [re.sub(r"[\d.]+ s$", "0 s", line) for line in lines[2:]] == [
        "Writing: 1 MB in 0 s",
        "Converting: 0 s",
        "Exporting: 0 s",
    ]


def test_a_command_that_needs_a_missing_package_names_it() -> None:
    done = run_without(["plan", "llama3-8b"])
    assert done.returncode == 2
    assert re.match(r"error: the Python package \w+ is not installed. .*pip install", done.stderr)


def test_the_board_page_s_commands_exist() -> None:
    page = (REPOSITORY / "kernels/ascend/BOARD.md").read_text()
    targets = set(re.findall(r"(?m)^([\w-]+):", (REPOSITORY / "Makefile").read_text()))
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)", page))
    assert {"export", "kernels", "convert", "board-check", "board-probe"} <= named <= targets
    commands = set(re.findall(r"(?:`|^)edgellama ([a-z][a-z-]+)", page, re.MULTILINE))
    assert {"convert", "board-check", "board-probe", "generate"} <= commands <= {*COMMANDS, "generate"}


def test_the_board_page_names_the_soc_versions_of_the_boards() -> None:
    page = (REPOSITORY / "kernels/ascend/BOARD.md").read_text()
    listed = {soc for chip in CHIPS.values() for soc in chip.soc_versions}
    named = set(re.findall(r"Ascend(?:310[BP]|910B)\d[\w-]*", page))
    assert {board.soc for chip in CHIPS.values() for board in chip.boards} - {None} <= named <= listed
