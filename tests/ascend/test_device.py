"""Finds the device and its free memory; refuses an artifact that does not fit before it is loaded."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgellama.artifact.manifest import Artifact, Conversion
from edgellama.backend.ascend import device, npu_smi
from edgellama.backend.ascend.device import Device, find
from edgellama.backend.ascend.npu_smi import MIB, Npu, NpuSmi, parse
from edgellama.backend.ascend.requirements import check_converted, check_device, check_lite, needed
from edgellama.errors import UserError
from edgellama.kernels.ascend.chips import CHIPS, chip_of_soc, runs_on
from support import ascend_texts as texts
from support.ascend_artifact import ascend_manifest
from support.child import REPOSITORY, run_cli

GIB = 1 << 30
BOARD = Device(0, "Ascend310B4", 5 * GIB, 8 * GIB, "npu-smi")


# --- npu-smi, on recorded output ---


@pytest.mark.parametrize(
    ("text", "version", "npus"),
    [
        (texts.SMI_310B, "23.0.0", [Npu(0, "Ascend310B4", "Alarm", 2500 * MIB, 7545 * MIB)]),
        (texts.SMI_310P, "25.3.rc1", [Npu(0, "Ascend310P3", "OK", 1839 * MIB, 21525 * MIB)]),
        (
            texts.SMI_310P_TWO,
            "22.0.2",
            [
                Npu(0, "Ascend310P3", "OK", 1074 * MIB, 21534 * MIB),
                Npu(1, "Ascend310P3", "OK", 1070 * MIB, 21534 * MIB),
            ],
        ),
        (
            texts.SMI_910,
            "24.1.0",
            [Npu(0, "Ascend910B", "OK", 1365 * MIB, 32768 * MIB), Npu(1, "Ascend910B", "OK", 4 * MIB, 32768 * MIB)],
        ),
        (texts.SMI_910B4_1, "25.2.0", [Npu(0, "Ascend910B4-1", "OK", 3451 * MIB, 65536 * MIB)]),
    ],
)
def test_tables_of_five_hosts(text: str, version: str, npus: list[Npu]) -> None:
    assert parse(text) == NpuSmi(version, tuple(npus))


def test_output_without_a_table_is_an_error() -> None:
    with pytest.raises(UserError, match=r"printed no table but: dcmi model initialized failed"):
        parse("dcmi model initialized failed\n")


def npu_smi_that(folder: Path, script: str) -> str:
    tool = folder / "npu-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_npu_smi_is_run_and_its_failure_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table").write_text(texts.SMI_310B)
    monkeypatch.setenv("PATH", npu_smi_that(tmp_path, f'[ "$1" = info ] && cat {tmp_path}/table'))
    table = npu_smi.read()
    assert table is not None and table.npus[0].free == (7545 - 2500) * MIB
    monkeypatch.setenv("PATH", npu_smi_that(tmp_path, "echo DrvMngGetConsoleLogLevel failed >&2; exit 255"))
    with pytest.raises(UserError, match=r"failed with status 255: DrvMngGetConsoleLogLevel failed. .*HwHiAiUser"):
        npu_smi.read()


# --- pyACL, simulated: a module called acl with the functions that the probe calls ---

ACL = """
SOC, COUNT = "{soc}", {count}
class rt:
    get_device_count = staticmethod(lambda: (COUNT, 0))
    set_device = staticmethod(lambda device: {status})
    get_mem_info = staticmethod(lambda kind: [(300, 400, 0), (0, 0, 0)][kind])
    reset_device = staticmethod(lambda device: 0)
init = finalize = lambda: 0
get_soc_name = lambda: SOC
"""


def with_acl(folder: Path, monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    (folder / "acl.py").write_text(ACL.format(**{"soc": "Ascend310P3", "count": 2, "status": 0, **values}))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{REPOSITORY}")


def test_acl_is_loaded_in_a_child_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_acl(tmp_path, monkeypatch)
    assert find(1) == Device(1, "Ascend310P3", 300, 400, "acl")
    with pytest.raises(UserError, match=r"device_id is 2; this host has 0, 1. Choose one of them"):
        find(2, read=lambda: None)


def test_a_device_that_acl_cannot_open_is_reported_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_acl(tmp_path, monkeypatch, status=507033)
    with pytest.raises(UserError, match=r"device 0 cannot be opened: acl.rt.set_device\(0\) gave 507033"):
        find(0, read=lambda: None)


def test_a_probe_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPOSITORY}")
    (tmp_path / "acl.py").write_text("import os; os.kill(os.getpid(), 11)")
    with pytest.raises(UserError, match=r"`acl` gave no answer \(killed by signal 11\).*ends:\n\(it printed nothing\)"):
        find(0)
    (tmp_path / "acl.py").write_text("raise RuntimeError('libascend_hal.so is not loaded')")
    with pytest.raises(UserError, match=r"(?s)no answer \(status 1\).*RuntimeError: libascend_hal.so is not loaded$"):
        find(0)


def test_npu_smi_answers_where_acl_is_missing() -> None:
    found = find(0, ask=lambda _: None, read=lambda: parse(texts.SMI_310P))
    assert found == Device(0, "Ascend310P3", (21525 - 1839) * MIB, 21525 * MIB, "npu-smi")
    with pytest.raises(UserError, match=r"device_id is 6; this host has 0. Choose one of them"):
        find(6, ask=lambda _: None, read=lambda: parse(texts.SMI_310P))


def test_no_device_at_all_names_what_to_install() -> None:
    with pytest.raises(UserError, match=r"no Ascend device was found: npu-smi is not installed.*TARGET=cpu"):
        find(0, ask=lambda _: None, read=lambda: None)


def test_on_this_host_without_a_board_generate_reports_it(tmp_path: Path) -> None:
    """The real command on this host, without driver and CANN, ends with exit status 2."""
    if npu_smi.read() is not None or device.ask_acl(0) is not None:
        pytest.skip("this host has an NPU")
    ascend_manifest(tmp_path)
    done = run_cli("generate", str(tmp_path), "--prompt", "hi", "--device-id", "0")
    assert done.returncode == 2 and "error: no Ascend device was found" in done.stderr


# --- what is refused before loading ---


def opened(folder: Path, **changes: Any) -> Artifact:
    ascend_manifest(folder, **changes)
    return Artifact.open(folder)


@pytest.mark.parametrize(
    ("soc", "target"),
    [
        ("Ascend310P3", "ascend310p"),
        ("Ascend310B1", "ascend310b"),
        ("Ascend910B4", "ascend910b"),
        ("Ascend910B4-1", "ascend910b"),
        ("Ascend910B", None),
        ("Ascend310B9", None),
        ("310B4", None),
    ],
)
def test_chips_by_socversion(soc: str, target: str | None) -> None:
    """910B without a digit is the first Ascend 910."""
    chip = chip_of_soc(soc)
    assert (chip.target if chip else None) == target


def test_the_device_check_accepts_what_the_table_says(tmp_path: Path) -> None:
    """Checks every pair of the version of a conversion and the version of the device."""
    socs = [soc for chip in CHIPS.values() for soc in chip.soc_versions] + ["Ascend910B", "Ascend310"]
    for target, chip in CHIPS.items():
        for made in chip.soc_versions:
            artifact = opened(tmp_path, target=target, converted=Conversion(made, (1, 4, 16), "8.2", "2.7.0"))
            for here in socs:
                device = dataclasses.replace(BOARD, soc=here)
                if runs_on(made, here):
                    assert check_device(artifact, device) == chip and here in chip.soc_versions
                else:
                    with pytest.raises(UserError):
                        check_device(artifact, device)
            assert [here for here in socs if runs_on(made, here)] == [made]


def test_targets_are_those_that_the_operator_package_is_built_for() -> None:
    presets = (REPOSITORY / "kernels/ascend/CMakePresets.json").read_text()
    assert ";".join(CHIPS) in presets


def test_an_artifact_for_another_chip_names_the_one_that_is_here(tmp_path: Path) -> None:
    artifact = opened(tmp_path)
    with pytest.raises(UserError, match=r"is for ascend310b \(OrangePi.*device 0 is an Ascend310P3. .*ascend310p and"):
        check_device(artifact, dataclasses.replace(BOARD, soc="Ascend310P3"))
    with pytest.raises(UserError, match=r"device 0 is an Ascend910B. No target of this release is for it"):
        check_device(artifact, dataclasses.replace(BOARD, soc="Ascend910B"))
    with pytest.raises(UserError, match=r"converted for Ascend310B4; device 0 is an Ascend310B1.*SOC=Ascend310B1"):
        check_device(artifact, dataclasses.replace(BOARD, soc="Ascend310B1"))
    with pytest.raises(
        UserError, match=r"target is 'ascend999'; Ascend targets are ascend310p, ascend310b, ascend910b"
    ):
        check_device(opened(tmp_path, target="ascend999"), BOARD)


def test_an_unconverted_artifact_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not converted yet.*`make convert ARTIFACT="):
        check_converted(opened(tmp_path, converted=None))
    with pytest.raises(UserError, match=r"converted with the gears 1, 4; its buckets also hold 16"):
        check_converted(opened(tmp_path, converted=Conversion("Ascend310B4", (1, 4), "8.2", "2.7.0")))
    check_converted(opened(tmp_path))


def test_memory_that_does_not_suffice_is_counted_out(tmp_path: Path) -> None:
    """The device holds two caches. A board with shared memory also holds the file that is read and one more cache."""
    artifact = opened(tmp_path)
    cache, weights = artifact.manifest.cache.nbytes, artifact.manifest.graphs[0].bytes
    wants = needed(artifact.manifest)
    assert (wants.weights, wants.device_cache, wants.host_cache) == (weights, 2 * cache, cache)
    whole = 2 * weights + 3 * cache
    check_device(artifact, dataclasses.replace(BOARD, free=whole))
    with pytest.raises(
        UserError, match=r"free of 8.6 GB; .* needs at least .*weights .*CONTEXT \(now 64\), BATCH \(2\)"
    ):
        check_device(artifact, dataclasses.replace(BOARD, free=whole - 1))
    card = opened(tmp_path, target="ascend310p", converted=Conversion("Ascend310P3", (1, 4, 16), "8.2", "2.7.0"))
    check_device(card, dataclasses.replace(BOARD, soc="Ascend310P3", free=weights + 2 * cache))
    with pytest.raises(UserError, match=r"needs at least"):
        check_device(card, dataclasses.replace(BOARD, soc="Ascend310P3", free=weights + 2 * cache - 1))
    check_device(card, dataclasses.replace(BOARD, soc="Ascend310P3", free=0, total=0))  # the free memory is unknown


def test_features_are_looked_for_not_the_version() -> None:
    """SIMULATED signatures of a later release with an old version number, and the reverse."""

    class Tensor:
        def __init__(self, tensor: Any = None, shape: Any = None, dtype: Any = None, device: Any = None) -> None: ...

    class Model:
        def predict(self, inputs: Any, outputs: Any = None) -> None: ...
        def build_from_file(self, path: str, kind: Any, context: Any = None, config_dict: Any = None) -> None: ...

    check_lite(SimpleNamespace(Tensor=Tensor, Model=Model, __version__="1.0"))

    class Older(Model):
        def predict(self, inputs: Any) -> None: ...  # type: ignore[override]

    with pytest.raises(UserError, match=r"MindSpore Lite 9.9 lacks Model.predict\(inputs, outputs\). Install"):
        check_lite(SimpleNamespace(Tensor=Tensor, Model=Older, __version__="9.9"))
