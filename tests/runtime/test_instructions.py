"""The check of the CPU's instructions: what passes, what is refused, and that no numpy is imported before it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgellama
from edgellama import UserError, instructions
from edgellama.__main__ import main

# A Core 2 Duo and QEMU's default CPU, as Linux lists them; the second processor of the first has more on purpose.
CORE2 = """processor\t: 0
model name\t: Intel(R) Core(TM)2 Duo CPU     T7300  @ 2.00GHz
flags\t\t: fpu mmx fxsr sse sse2 ht syscall nx lm constant_tsc pni dtes64 monitor ssse3 cx16 xtpr lahf_lm

processor\t: 1
flags\t\t: lm cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2
"""
QEMU64 = (
    "model name\t: QEMU Virtual CPU version 2.5+\nflags\t\t: fpu sse sse2 syscall nx lm pni cx16 hypervisor lahf_lm\n"
)
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes\nCPU implementer\t: 0x41\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(instructions, "CPUINFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (CORE2, r"Core\(TM\)2 Duo .* lacks popcnt, sse4_1, sse4_2; numpy 2\.\S+ needs x86-64-v2"),
        (QEMU64, r"QEMU Virtual CPU .* lacks popcnt, ssse3, sse4_1, sse4_2; .*-cpu host"),
    ],
)
def test_a_cpu_below_numpys_baseline_is_refused(
    cpuinfo: Path, text: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpuinfo.write_text(text)
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"numpy": "2.4.6"}[name])
    with pytest.raises(UserError, match=found):
        instructions.check_cpu()
    with pytest.raises(UserError, match=found):
        _ = edgellama.LlamaForCausalLM  # imports numpy
    assert main(["generate", "artifact", "--prompt", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: this CPU (")
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"numpy": "2.3.5"}[name])
    instructions.check_cpu()  # that release needs less


@pytest.mark.parametrize("text", [CORE2.replace("xtpr", "popcnt sse4_1 sse4_2"), ARM, "", None])
def test_other_cpus_pass(cpuinfo: Path, text: str | None) -> None:
    if text is not None:
        cpuinfo.write_text(text)
    instructions.check_cpu()


def test_this_cpu_passes_and_the_check_needs_no_numpy() -> None:
    code = "import sys; from edgellama.instructions import check_cpu; check_cpu(); assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
