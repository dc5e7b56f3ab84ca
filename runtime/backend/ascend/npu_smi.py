"""Reads the output of `npu-smi info`: which NPUs this host has, and how much of their memory is in use.

npu-smi comes with the driver. Its table has two lines per chip. The memory is the last "used / total" of the second
line, in MiB: HBM if the chip has it, else DDR.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from ...errors import UserError

MIB = 1 << 20
TIMEOUT = 30  # seconds, so that a driver that hangs does not hang this process
# The folders of the driver are not in every PATH.
PLACES = ("npu-smi", "/usr/local/sbin/npu-smi", "/usr/local/bin/npu-smi")
FIRST = re.compile(r"^\|\s*\d+\s+(\w*\d{3}[\w-]*)\s*\|\s*(\w+)\s*\|")  # | 0  310B4 | OK | ...
SECOND = re.compile(r"^\|\s*\d+(?:\s+(\d+))?\s*\|\s*\S+\s*\|(.*)\|\s*$")  # | 0 [device] | bus | ... used / total |
USAGE = re.compile(r"(\d+)\s*/\s*(\d+)")


@dataclass(frozen=True)
class Npu:
    """One chip: the number that programs use, its SoC version, its health, and bytes of memory."""

    device: int
    soc: str
    health: str
    used: int
    total: int

    @property
    def free(self) -> int:
        return self.total - self.used


@dataclass(frozen=True)
class NpuSmi:
    """The version of the tool, which is that of the driver, and the chips in the order of the table."""

    version: str
    npus: tuple[Npu, ...]


def parse(text: str) -> NpuSmi:
    """Read the output of `npu-smi info`. Raises UserError if it is not such a table."""
    version = re.search(r"npu-smi\s+\S+\s+Version:\s*(\S+)", text)
    if version is None:
        last = text.strip().splitlines()[-1:] or ["nothing"]
        raise UserError(
            f"`npu-smi info` printed no table but: {last[0]}. Check the driver, and that this user may use it"
        )
    found: list[Npu] = []
    named: tuple[str, str] | None = None
    for line in text.splitlines():
        if "Process id" in line:  # the table of processes follows
            break
        if first := FIRST.match(line):
            named = (first[1], first[2])
        elif named and (second := SECOND.match(line)):
            used, total = (int(number) for number in USAGE.findall(second[2])[-1])
            # Without a column Device the chips are numbered in the order of the table.
            device = int(second[1]) if second[1] else len(found)
            found.append(Npu(device, f"Ascend{named[0]}", named[1], used * MIB, total * MIB))
            named = None
    return NpuSmi(version[1], tuple(found))


def read() -> NpuSmi | None:
    """Run npu-smi. Return None if it is not installed. Raises UserError if it fails."""
    command = next((found for place in PLACES if (found := shutil.which(place))), None)
    if command is None:
        return None
    try:
        done = subprocess.run([command, "info"], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command} info did not answer ({error}). Check that the driver is loaded: `dmesg`") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing"]
        raise UserError(
            f"`{command} info` failed with status {done.returncode}: {said[0]}. "
            "Check that the driver is loaded, and that this user is in the group HwHiAiUser"
        )
    return parse(done.stdout)
