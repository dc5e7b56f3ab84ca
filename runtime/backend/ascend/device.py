"""Finds an NPU and its free memory: asks CANN's Python module if it can be imported, else npu-smi."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...checkout import module_command
from ...errors import UserError
from . import npu_smi
from .npu_smi import NpuSmi

TIMEOUT = 60  # seconds: after a reset, opening a device takes long
TAIL_LINES = 6  # of the output of a process that died


@dataclass(frozen=True)
class Device:
    """A device of this host.

    Attributes:
        id: the number that programs use
        soc: its SoC version, as CANN names it
        free, total: bytes of memory; 0 if unknown
        source: who reported it, "acl" or "npu-smi"
    """

    id: int
    soc: str
    free: int
    total: int
    source: str


def ask_acl(device: int) -> dict[str, Any] | None:
    """Return what acl_probe prints, or None if pyACL cannot be imported. Raises UserError if the process dies."""
    command = [*module_command("edgellama.backend.ascend.acl_probe"), str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"CANN's Python module `acl` gave no answer in {TIMEOUT} s. Check the driver with `npu-smi info`"
        ) from error
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        said = "\n".join(done.stderr.strip().splitlines()[-TAIL_LINES:]) or "(it printed nothing)"
        how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise UserError(
            f"CANN's Python module `acl` gave no answer ({how}). Check the driver with `npu-smi info`. It ends:\n{said}"
        ) from error
    return None if "missing" in answer else answer


def find(
    device: int,
    ask: Callable[[int], dict[str, Any] | None] = ask_acl,
    read: Callable[[], NpuSmi | None] = npu_smi.read,
) -> Device:
    """Return the device with this number. Raises UserError if there is none; it lists the devices, or what to install.

    Args:
        ask, read: the sources of the answers; tests replace them.
    """
    acl = ask(device)
    if acl is not None and "error" not in acl and device < acl["count"]:
        return Device(device, acl["soc"], acl.get("free", 0), acl.get("total", 0), "acl")
    table = read()
    if table is not None:
        for npu in table.npus:
            if npu.device == device:
                return Device(device, npu.soc, npu.free, npu.total, "npu-smi")
    if acl is not None and "error" in acl:
        raise UserError(f"device {device} cannot be opened: {acl['error']}. Check its health with `npu-smi info`")
    known = [npu.device for npu in table.npus] if table else list(range(acl["count"])) if acl else []
    if known:
        raise UserError(f"device_id is {device}; this host has {', '.join(map(str, known))}. Choose one of them")
    raise UserError(
        "no Ascend device was found: "
        f"{'npu-smi lists none' if table else 'npu-smi is not installed'}, and CANN's Python module "
        f"{'`acl` sees none' if acl else '`acl` cannot be imported'}. Install the driver and run "
        "`source /usr/local/Ascend/ascend-toolkit/set_env.sh`; for this host's CPU export with TARGET=cpu"
    )
