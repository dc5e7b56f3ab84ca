"""A LoRA adapter as the CPU kernels take it: its matrices for each layer, changed as the export changes the weights.

The packed weights are not those of the checkpoint (exporter/checkpoint/folded.py, exporter/opsets/cpu_weights.py): q, k
and v are one matrix, gate and up another whose panels alternate; the rows of q and k are in another order if a part of
each head is rotated; and multipliers of the residual stream are in o_proj and down_proj. So B changes likewise. A stays
as it is, because the kernels apply it after the norm and its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellama.kernels.cpu.adapters import Matrices
from edgellama.kernels.weight_format import head_order, interleave_gate_up

from ..artifact.manifest import Manifest
from ..errors import UserError
from ..lora.adapter import Adapter, Base
from ..lora.config import EMBEDDING, HEAD, read_config
from ..mindir.architectures import architecture_of
from ..mindir.config_values import Config, require
from ..mindir.network import Network

Floats = NDArray[np.float32]
FUSED = ("phi3",)  # model types whose class joins q, k and v, and gate and up
# The kernels' weights of a layer: their linear layers, and the name of the module that joins them where FUSED.
PARTS = {
    "qkv": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.qkv_proj"),
    "o": (("self_attn.o_proj",), "self_attn.o_proj"),
    "gate_up": (("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_up_proj"),
    "down": (("mlp.down_proj",), "mlp.down_proj"),
}


def require_run_time(manifest: Manifest, what: str) -> None:
    """Raise UserError if the artifact's target cannot take adapters at run time. what: the folder of one."""
    if manifest.opset != "cpu":
        raise UserError(
            f"{what}: this artifact's target is {manifest.target}, and only the cpu target takes adapters at run time. "
            f"{_merge(manifest, what)}"
        )


class RunTimeAdapter(NamedTuple):
    """The matrices of an adapter, and a text that identifies its files and its scale."""

    matrices: list[Matrices]
    content: str


def read_adapter(folder: Path, scale: float, manifest: Manifest) -> RunTimeAdapter:
    """Read a PEFT adapter and return its matrices for the kernels.

    Args:
        folder: of the adapter.
        scale: multiplies its effect.
        manifest: of an artifact of the cpu op set.

    Raises:
        UserError: the folder is no LoRA adapter, it does not fit the model, or a part of it cannot apply at run time.
    """
    config, remedy = read_config(folder), _merge(manifest, str(folder))
    for found, name in (
        (config.dora, "use_dora"),
        (config.modules_to_save, "modules_to_save"),
        (config.bias != "none", "bias"),
        (config.tokens, "trainable_token_indices"),
    ):
        if found:
            raise UserError(f"{folder}: it has {name}, which changes more than a low-rank product. {remedy}")
    network = Network.of(manifest)
    values = {key: value for key, value in manifest.config.items() if value is not None}
    fused = values["model_type"] in FUSED
    adapter = Adapter(folder, scale, _base(manifest, network, fused))
    for module, low in adapter.low_rank.items():
        if module.endswith((EMBEDDING, HEAD)):
            raise UserError(f"{folder}: it adapts {module}, which is not in a layer. {remedy}")
        if low.bias is not None:
            raise UserError(f"{folder}: it has a bias for {module} (lora_bias). {remedy}")
    return RunTimeAdapter(list(_matrices(adapter, network, values, fused)), f"{adapter.revision} x {scale!r}")


def _matrices(adapter: Adapter, network: Network, config: Config, fused: bool) -> Iterator[Matrices]:
    order, factor = _order(network, config), _added_factor(config)
    for layer in range(network.layers):
        for part, (names, joined) in PARTS.items():
            sizes = [network.linear(_short(name))[0] for name in names]
            below = f"model.layers.{layer}."
            modules = [(joined, sum(sizes))] if fused else list(zip(names, sizes, strict=True))
            found = _stacked(adapter, [(below + name, size) for name, size in modules])
            if found is None:
                continue
            a, b = found
            if part == "qkv" and order is not None:
                for first, size in ((0, sizes[0]), (sizes[0], sizes[1])):
                    heads = b[first : first + size].reshape(-1, network.width, b.shape[1])
                    b[first : first + size] = heads[:, order].reshape(size, -1)
            if part == "gate_up":
                b = interleave_gate_up(b[: sizes[0]], b[sizes[0] :])
            after = network.norms.after_attention if part == "o" else network.norms.after_mlp
            if part in ("o", "down") and after is None:  # otherwise the norm has the factor
                b = b * np.float32(factor)
            yield Matrices(layer, part, a, b)


def _stacked(adapter: Adapter, modules: Sequence[tuple[str, int]]) -> tuple[Floats, Floats] | None:
    """Return A [R, K] and B [outputs, R] of several modules (name, outputs) that read the same input.

    R is the sum of their ranks, and B is zero where a module has the ranks of another. None if none is adapted.
    """
    ranks, firsts = 0, [0, *accumulate(size for _, size in modules)]
    a, blocks = [], []
    for (name, _), first in zip(modules, firsts, strict=False):
        low = adapter.low_rank.get(name)
        if low is not None:
            a.append(adapter.read(low.a))
            blocks.append((first, ranks, np.float32(low.scaling) * adapter.read(low.b)))
            ranks += len(a[-1])
    if not a:
        return None
    b = np.zeros((firsts[-1], ranks), np.float32)
    for first, at, block in blocks:
        b[first : first + block.shape[0], at : at + block.shape[1]] = block
    return np.concatenate(a), b


def _base(manifest: Manifest, network: Network, fused: bool) -> Base:
    """Return the modules that an adapter may name, with the names and shapes of Hugging Face's class."""
    shapes: dict[str, tuple[int, ...]] = {
        f"model.{EMBEDDING}.weight": (network.vocabulary, network.hidden),
        f"{HEAD}.weight": (network.vocabulary, network.hidden),
    }
    for layer in range(network.layers):
        for names, joined in PARTS.values():
            linear = [network.linear(_short(name)) for name in names]
            outputs, inputs = [size for size, _, _ in linear], linear[0][1]
            for name, size in [(joined, sum(outputs))] if fused else zip(names, outputs, strict=True):
                shapes[f"model.layers.{layer}.{name}.weight"] = size, inputs
                if linear[0][2]:
                    shapes[f"model.layers.{layer}.{name}.bias"] = (size,)
    return Base(manifest.name, shapes)


def _short(name: str) -> str:
    """self_attn.q_proj -> q."""
    return name.rpartition(".")[2].removesuffix("_proj")


def _added_factor(config: Config) -> float:
    """Return what o_proj and down_proj are multiplied by: the graph's residual stream has no multiplier."""
    known = architecture_of(config)
    return known.residual(config) / known.multiplier(config)


def _order(network: Network, config: Config) -> NDArray[np.int64] | None:
    """Return the checkpoint's element for each element of a head of q and k; None if they are the same."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    share = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
    share = config.get("partial_rotary_factor", 1.0) if share is None else share
    valid = isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1
    require(valid, "partial_rotary_factor", share, "a number above 0, at most 1")
    return head_order(network.width, int(network.width * share))


def _merge(manifest: Manifest, folder: str) -> str:
    return f"Merge the adapter at export: `make export MODEL={manifest.source.model} LORA={folder}`"
