"""Checks before an Ascend artifact is loaded: the chip, the conversion, free memory, and MindSpore Lite's features."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from edgellama.kernels.ascend.chips import CHIPS, Chip, chip_of_soc, runs_on

from ...artifact.manifest import Artifact, Manifest
from ...errors import UserError
from .device import Device

# When MindSpore Lite loads a model, it allocates a buffer on the device for every input, and another in page-locked
# host memory, although a cache is later bound by the address of our tensor (its model_process.cc and
# single_op_session.cc, 2.7). So a cache counts twice on the device and once on the host.
DEVICE_CACHES, HOST_CACHES = 2, 1
LITE = "Install MindSpore Lite 2.4.1 or later for Ascend (kernels/ascend/BOARD.md says where to get it)"


@dataclass(frozen=True)
class Needed:
    """Bytes that loading takes at least. CANN's workspace comes on top."""

    weights: int
    device_cache: int
    host_cache: int

    @classmethod
    def of(cls, weights: int, cache: int) -> Needed:
        """Compute them from the bytes of the graph's files and of the KV cache."""
        return cls(weights, DEVICE_CACHES * cache, HOST_CACHES * cache)

    def on_device(self, chip: Chip) -> int:
        """Return the bytes on the device.

        On a chip that shares the host's memory, the file that is being read and the host's buffers count too.
        """
        own = self.weights + self.device_cache
        return own + self.weights + self.host_cache if chip.shares_memory else own


def needed(manifest: Manifest) -> Needed:
    """Compute what an artifact needs from the sizes in its manifest."""
    return Needed.of(sum(entry.bytes for entry in manifest.files()), manifest.cache.nbytes)


def missing_features(lite: Any) -> list[str]:
    """Return the features that the runtime uses and this `mindspore_lite` does not have.

    It looks at the functions, not at the version.
    """
    wanted = (
        (lite.Tensor.__init__, "device", "Tensor(device=...)"),
        (lite.Model.predict, "outputs", "Model.predict(inputs, outputs)"),
        (lite.Model.build_from_file, "config_dict", "Model.build_from_file(config_dict=...)"),
    )
    return [name for function, argument, name in wanted if argument not in inspect.signature(function).parameters]


def check_lite(lite: Any) -> None:
    """Raise UserError if this MindSpore Lite cannot hold tensors on a device."""
    if missing := missing_features(lite):
        version = getattr(lite, "__version__", "of unknown version")
        raise UserError(f"MindSpore Lite {version} lacks {', '.join(missing)}. {LITE}")


def check_converted(artifact: Artifact) -> None:
    """Raise UserError if CANN has not compiled the graph yet, or not for every bucket."""
    converted = artifact.manifest.converted
    if converted is None:
        raise UserError(
            f"{artifact.path}: exported for {artifact.manifest.target}, but not converted yet: CANN must compile its "
            f"graph for one SoC version. On a board with CANN: `make convert ARTIFACT={artifact.path}` or "
            f"`edgellama convert {artifact.path}`. On another host with CANN add SOC=... or --soc ..."
        )
    if lost := sorted(set(artifact.manifest.buckets) - set(converted.buckets)):
        raise UserError(
            f"{artifact.path}: converted with the gears {_listed(converted.buckets)}; its buckets also hold "
            f"{_listed(lost)}. Convert the exported artifact again: `make convert ARTIFACT=...`"
        )


def check_device(artifact: Artifact, device: Device) -> Chip:
    """Return the device's chip. Raises UserError if the artifact cannot run there.

    It accepts what the table of chips says is compatible (kernels/ascend/chips.py), and nothing else: the device's SoC
    version belongs to the chip that the artifact's target names, and the graph was converted for the same SoC version
    (runs_on). The device must also have enough free memory.
    """
    manifest = artifact.manifest
    wanted, found = CHIPS.get(manifest.target), chip_of_soc(device.soc)
    if wanted is None:
        raise UserError(
            f"{artifact.path}: target is {manifest.target!r}; Ascend targets are {', '.join(CHIPS)}. Export again"
        )
    if found != wanted:
        remedy = (
            f"Export with TARGET={found.target} and convert that" if found else "No target of this release is for it"
        )
        raise UserError(
            f"{artifact.path} is for {wanted.target} ({', '.join(wanted.products)}); device {device.id} is an "
            f"{device.soc}. {remedy}"
        )
    if manifest.converted is not None and not runs_on(manifest.converted.soc, device.soc):
        raise UserError(
            f"{artifact.path} was converted for {manifest.converted.soc}; device {device.id} is an {device.soc}. "
            f"Convert the exported artifact for it: `make convert ARTIFACT=... SOC={device.soc}`"
        )
    _check_memory(artifact, device, wanted)
    return wanted


def _check_memory(artifact: Artifact, device: Device, chip: Chip) -> None:
    wants = needed(artifact.manifest)
    if device.total == 0 or wants.on_device(chip) <= device.free:  # 0: neither acl nor npu-smi knows
        return
    parts = f"weights {_gb(wants.weights)}, caches {_gb(wants.device_cache)}"
    if chip.shares_memory:
        parts += (
            f", on this board also the file while it is read {_gb(wants.weights)} and buffers {_gb(wants.host_cache)}"
        )
    raise UserError(
        f"device {device.id} ({device.soc}) has {_gb(device.free)} free of {_gb(device.total)}; {artifact.path} needs "
        f"at least {_gb(wants.on_device(chip))}: {parts}. Free some (`npu-smi info` lists processes), or export with a "
        f"smaller CONTEXT (now {artifact.manifest.context:,}), BATCH ({artifact.manifest.batch}) or model"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _listed(buckets: Any) -> str:
    return ", ".join(str(bucket) for bucket in buckets)
