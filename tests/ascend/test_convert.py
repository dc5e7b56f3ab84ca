"""Conversion for Ascend: the checks of the host, and the results of a converter that succeeds or fails.

CANN and its converter are SIMULATED by a folder tree and a script with the converter's name and options.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgellama.artifact.manifest import Artifact, Conversion
from edgellama.backend.ascend.npu_smi import parse
from edgellama.errors import UserError
from edgellama.exporter.ascend import convert as conversion
from edgellama.exporter.ascend.convert import ConvertOptions, check_output, convert
from edgellama.exporter.ascend.convert_host import Host, cann_version, check_room, inspect_host, package_chips
from edgellama.exporter.progress import Progress
from edgellama.exporter.writing.convert_config import read_config, write_config
from edgellama.kernels.ascend.chips import CHIPS
from support import ascend_texts as texts
from support.ascend_artifact import GEARS, ascend_manifest
from support.child import run_child

B310 = CHIPS["ascend310b"]
INI = """\
# For Ascend 310B.
[ascend_context]
precision_mode=enforce_origin

[acl_build_options]
input_shape="tokens_by_step:-1,2;start:2;length:2"
ge.dynamicBatchSize="1,4,16"
"""


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """The toy as an artifact for ascend310b with a tokenizer, not converted."""
    folder = tmp_path / "toy-ascend310b-fp16"
    ascend_manifest(folder, converted=None)
    (folder / "convert.ini").write_text(INI)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def cann(tmp_path: Path) -> Path:
    """CANN's folders as the toolkit installs them, with our operator package for the 310B."""
    folder = tmp_path / "cann"
    (folder / "compiler").mkdir(parents=True)
    (folder / "compiler/version.info").write_text("Version=8.2.0.1.220\nversion_dir=8.2.RC1\n")
    (folder / "opp/vendors/edgellama/op_impl/ai_core/tbe/config/ascend310b").mkdir(parents=True)
    return folder


def converter_that(folder: Path, script: str) -> str:
    """Writes a converter_lite that runs `script`; $out is the name of the output, $ini the configuration."""
    tool = folder / "converter_lite"
    tool.write_text(
        "#!/bin/sh\n"
        'for a in "$@"; do case "$a" in --outputFile=*) out="${a#*=}";; --configFile=*) ini="${a#*=}";; esac; done\n'
        f"{script}\n"
    )
    tool.chmod(0o755)
    return str(tool)


@pytest.fixture
def converting(exported: Path, cann: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """run(script, **options) converts `exported` with a simulated converter on a host without an NPU.

    The file `printed` has the printed text.
    """
    monkeypatch.setattr(conversion.npu_smi, "read", lambda: None)

    def run(script: str, **options: Any) -> Path:
        host = Host(cann, "8.2.0", converter_that(exported.parent, script), "2.7.0")
        monkeypatch.setattr(conversion, "inspect_host", lambda chip: host)
        with (exported.parent / "printed").open("w") as printed:
            options = {"soc": "Ascend310B1", **options}
            return convert(ConvertOptions(exported, **options), Progress(Console(file=printed, width=200)))

    return run


WRITES = 'printf "x CustomAscend x" > "$out.mindir"; cp "$ini" "$(dirname "$out")/../../used.ini"; echo all is well'


def test_a_converted_artifact_names_its_chip_and_the_versions_used(converting: Any, exported: Path) -> None:
    out = converting(WRITES)
    assert out == exported.with_name("toy-ascend310b-fp16-310b1")
    opened = Artifact.open(out, check="always")
    assert opened.manifest.converted == Conversion("Ascend310B1", GEARS, "8.2.0", "2.7.0")
    assert opened.manifest.graphs[0].file == "graphs/step.mindir"
    assert sorted(path.name for path in out.iterdir()) == ["graphs", "manifest.json", "tokenizer.json"]
    assert exported.with_name(f"{out.name}.convert.log").read_text().endswith("all is well\n")
    # the export is unchanged and can be converted for another chip
    assert Artifact.open(exported).manifest.converted is None


def test_large_weights_lie_beside_the_graph_and_are_listed(converting: Any) -> None:
    """For more than 2 GB the converter writes <name>_variables/data_0."""
    out = converting(WRITES + '; mkdir "${out}_variables"; printf weights > "${out}_variables/data_0"')
    data = Artifact.open(out, check="always").manifest.graphs[0].data
    assert [(entry.file, entry.bytes) for entry in data] == [("graphs/step_variables/data_0", 7)]


def test_soc_is_the_given_one_or_the_one_of_this_host(
    converting: Any, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, printed = exported.parent / "used.ini", exported.parent / "printed"
    converting(WRITES, soc="Ascend310B4")
    assert "ge.socVersion=Ascend310B4" in used.read_text()
    assert "Converting for Ascend310B4: SOC names it" in printed.read_text()
    monkeypatch.setattr(conversion.npu_smi, "read", lambda: parse(texts.SMI_310B))
    assert converting(WRITES, soc=None).name.endswith("-310b4")
    assert "Converting for Ascend310B4: npu-smi lists it on this host" in printed.read_text()
    assert converting(WRITES, soc="Ascend310B1").name.endswith("-310b1")  # SOC has priority
    with pytest.raises(
        UserError, match=r"chip to convert for is 'Ascend310P3' \(SOC\); this artifact is for ascend310b"
    ):
        converting(WRITES, soc="Ascend310P3")
    with pytest.raises(UserError, match=r"is '310B4' .*`npu-smi info` on the board .* one of: .*, Ascend310B4 \("):
        converting(WRITES, soc="310B4")
    assert converting(WRITES, soc="Ascend310B4").name.endswith("-310b4")  # the remedy


@pytest.mark.parametrize(
    ("npus", "found"),
    [
        (None, "this host has no Ascend 310B"),
        (texts.SMI_310P, "this host has no Ascend 310B"),
        (texts.SMI_310B + texts.SMI_310B.replace("310B4", "310B1"), r"NPUs of several \(Ascend310B1, Ascend310B4\)"),
    ],
)
def test_no_soc_is_chosen_silently(
    converting: Any, exported: Path, monkeypatch: pytest.MonkeyPatch, npus: str | None, found: str
) -> None:
    """The configuration of an older export names a version; this is not a choice."""
    (exported / "convert.ini").write_text(INI + "\n[acl_init_options]\nge.socVersion=Ascend310B1\n")
    monkeypatch.setattr(conversion.npu_smi, "read", lambda: parse(npus) if npus else None)
    with pytest.raises(UserError, match=f"^SOC is needed: .*{found}.* Set SOC .--soc. to one of: Ascend310B1 "):
        converting(WRITES, soc=None)
    assert not [path for path in exported.parent.iterdir() if "310b" in path.name.removeprefix(exported.name)]


def test_npu_smi_that_fails_leaves_soc_to_the_caller(converting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> None:
        raise UserError("`npu-smi info` failed")

    monkeypatch.setattr(conversion.npu_smi, "read", read)
    with pytest.raises(UserError, match=r"^`npu-smi info` failed. Or name the SoC version yourself. .*Set SOC"):
        converting(WRITES, soc=None)
    converting(WRITES, soc="Ascend310B4")


def test_the_only_version_of_a_chip_needs_no_soc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion.npu_smi, "read", lambda: None)
    chip = dataclasses.replace(B310, soc_versions=("Ascend310B4",))
    assert conversion.choose_soc(None, chip) == ("Ascend310B4", "it is the only version of Ascend 310B")


def test_the_rest_of_the_configuration_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.ini").write_text(INI)
    write_config(tmp_path / "a.ini", tmp_path / "b.ini", "Ascend310B4")
    config = read_config(tmp_path / "b.ini")
    assert config["acl_build_options"]["input_shape"] == '"tokens_by_step:-1,2;start:2;length:2"'
    assert config["acl_build_options"]["ge.dynamicBatchSize"] == '"1,4,16"'
    assert config["acl_init_options"]["ge.socVersion"] == "Ascend310B4"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "cat <<'E'\n" + texts.EZ3002 + "E\nexit 1",
            r"failed \(status 1\): EZ3002: operator TransData is not supported",
        ),
        ("cat <<'E'\n" + texts.LITE_UNSUPPORTED + "E", r"failed: operator WaveletPool is not supported"),
        ("kill -9 $$", r"failed \(killed by signal 9\): the log names no known cause"),
        ("echo done", r"ended without an error but did not write step.mindir"),
        ('printf plain > "$out.mindir"', r"wrote a graph that CANN did not compile \(no CustomAscend node\)"),
    ],
)
def test_a_failure_names_the_cause_and_leaves_nothing_but_the_log(
    converting: Any, exported: Path, script: str, message: str
) -> None:
    before = sorted(exported.parent.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        converting(script)
    log = exported.with_name("toy-ascend310b-fp16-310b1.convert.log")
    assert f"The whole log is {log}" in str(caught.value)
    left = [path for path in sorted(exported.parent.iterdir()) if path not in before]
    assert {path.name for path in left} == {log.name, "converter_lite", "printed"}


def test_an_earlier_result_survives_a_failure(converting: Any) -> None:
    out = converting(WRITES)
    with pytest.raises(UserError):
        converting("exit 3")
    Artifact.open(out, check="always")


def test_a_marker_across_the_edge_of_two_reads_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.mindir"
    path.write_bytes(b"\0" * ((1 << 24) - 5) + b"CustomAscend")
    assert check_output(path, tmp_path) == path


def test_an_artifact_that_cannot_be_converted_is_refused(converting: Any, exported: Path) -> None:
    with pytest.raises(UserError, match=r"OUT is .*, the artifact itself"):
        converting(WRITES, out=exported)
    (exported / "convert.ini").unlink()
    with pytest.raises(UserError, match=r"convert.ini: missing"):
        converting(WRITES)
    ascend_manifest(exported)
    with pytest.raises(UserError, match=r"is converted already, for Ascend310B4"):
        converting(WRITES)


def test_what_convert_did_not_write_stays(converting: Any, exported: Path, tmp_path: Path) -> None:
    """A user's folder, a folder that contains the artifact, and a user's file with the name of the log."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("three years of work")
    log = tmp_path / "new.convert.log"
    log.write_text("three years of work")
    for out, words in (
        (mine, "it contains thesis.txt"),
        (exported.parent, "the source of this command"),
        (log.with_name("new"), "is not a log of `convert`"),
    ):
        with pytest.raises(UserError, match=words):
            converting(WRITES, out=out)
    assert (mine / "thesis.txt").exists() and exported.exists() and log.read_text() == "three years of work"
    assert not list(tmp_path.rglob("*edgellama-*"))
    ascend_manifest(exported, target="cpu")
    with pytest.raises(
        UserError, match=r"target is 'cpu', which needs no conversion. Export with TARGET=ascend310p or"
    ):
        converting(WRITES)


# --- the host ---


def test_a_host_with_everything(cann: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellama.exporter.ascend.convert_host.find_spec", lambda name: None)
    folder = tmp_path / "mindspore-lite-2.7.0rc1-linux-x64/tools/converter/converter"
    folder.mkdir(parents=True)
    tool = converter_that(folder, "")
    environment = {"ASCEND_HOME_PATH": str(cann), "PATH": str(folder)}
    assert inspect_host(B310, environment) == Host(cann, "8.2.0.1.220", tool, "2.7.0rc1")
    linked = tmp_path / "bin/converter_lite"
    linked.parent.mkdir()
    linked.symlink_to(tool)
    assert inspect_host(B310, {**environment, "PATH": str(linked.parent)}).lite == "2.7.0rc1"
    tool = converter_that(tmp_path, "")
    assert inspect_host(B310, {**environment, "PATH": str(tmp_path)}) == Host(cann, "8.2.0.1.220", tool, "unknown")


def test_everything_that_is_missing_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellama.exporter.ascend.convert_host.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        inspect_host(B310, {"PATH": str(tmp_path)})
    lines = str(caught.value).splitlines()
    assert [re.match(r"  - ([^:]+):", line)[1] for line in lines[1:4]] == [  # type: ignore[index]
        "CANN",
        "the operator package edgellama",
        "MindSpore Lite's converter",
    ]


def test_a_runtime_only_cann_and_a_package_for_another_chip_are_refused(cann: Path, tmp_path: Path) -> None:
    environment = {"ASCEND_HOME_PATH": str(cann)}
    with pytest.raises(
        UserError, match=r"for ascend310p: .*edgellama was built for ascend310b. Build it again: `kernels"
    ):
        inspect_host(dataclasses.replace(B310, target="ascend310p"), environment)
    (cann / "compiler").rename(cann / "gone")
    with pytest.raises(UserError, match=r"has no folder compiler. Install the toolkit, not the runtime"):
        inspect_host(B310, environment)
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        inspect_host(B310, {"ASCEND_TOOLKIT_HOME": "/nowhere"})


def test_a_package_installed_elsewhere_counts_first(cann: Path, tmp_path: Path) -> None:
    other = tmp_path / "opp/vendors/edgellama"
    (other / "op_impl/ai_core/tbe/config/ascend310p").mkdir(parents=True)
    assert package_chips(other) == ["ascend310p"]
    with pytest.raises(UserError, match=rf"{other} was built for ascend310p"):
        inspect_host(B310, {"ASCEND_HOME_PATH": str(cann), "ASCEND_CUSTOM_OPP_PATH": f"/a/b:{other}"})


def test_versions_of_cann(cann: Path) -> None:
    assert cann_version(cann) == "8.2.0.1.220"
    (cann / "compiler/version.info").unlink()
    assert cann_version(cann) == "unknown"
    (cann / "ascend_toolkit_install.info").write_text("package_name=Ascend-cann-toolkit\nversion=7.0.RC1\n")  # RECORDED
    assert cann_version(cann) == "7.0.RC1"


def test_disk_and_memory_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 2000000 kB\nSwapFree: 1000000 kB\n")
    check_room(tmp_path / "new" / "out", 1_000_000_000, meminfo)
    with pytest.raises(
        UserError, match=r"3.1 GB of memory and swap are free; converting needs about 3.3 GB \(3 copies"
    ):
        check_room(tmp_path, 1_100_000_000, meminfo)
    with pytest.raises(UserError, match=r"GB free; converting needs 2000000.0 GB there. Set OUT="):
        check_room(tmp_path, 10**15, meminfo)


def test_on_this_host_without_cann_convert_names_what_is_missing(exported: Path) -> None:
    """The real command on this host ends with exit status 2."""
    if "ASCEND_HOME_PATH" in os.environ or "ASCEND_TOOLKIT_HOME" in os.environ:
        pytest.skip("this host has CANN")
    done = run_child("-m", "edgellama", "convert", str(exported), "--soc", "Ascend310B4", status=2)
    assert "error: this host cannot convert for ascend310b" in done.stderr and "ASCEND_HOME_PATH" in done.stderr
    if metadata.version("mindspore-lite").startswith("2.0"):
        assert "was built without its converter, and converter_lite is not in PATH" in done.stderr
    assert not [path for path in exported.parent.iterdir() if path.name.startswith(".")]
    assert json.loads((exported / "manifest.json").read_text())["converted"] is None
