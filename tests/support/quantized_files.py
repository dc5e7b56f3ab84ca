"""Writes checkpoints with quantized weights, by the public descriptions of the layouts and independent of the exporter.

Each writer takes a matrix [N, K] and returns the stored tensors of its module and the values that they stand for, in
float64. Integers are packed one by one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Matrix = np.ndarray
Written = tuple[dict[str, torch.Tensor], Matrix]
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")


def word(values: list[int], bits: int) -> int:
    """Packs integers into a signed 32-bit word, the first into the lowest bits."""
    total = sum(int(value) << (bits * i) for i, value in enumerate(values))
    return total - (1 << 32) if total >= 1 << 31 else total


def packed_rows(values: Matrix, bits: int, order: tuple[int, ...] | None = None) -> Matrix:
    """Packs the integers of each row [R, C] into int32 [R, C * bits / 32]; `order`: which of them is in each place."""
    each = 32 // bits
    order = order or tuple(range(each))
    return np.array(
        [[word([row[c + i] for i in order], bits) for c in range(0, len(row), each)] for row in values], np.int32
    )


def integers(w: Matrix, groups: int, bits: int, order: Matrix | None = None, symmetric: bool = False) -> Any:
    """Rounds w [N, K] to integers 0..2^bits - 1. Returns q [N, K], scales float16 [N, groups] and zeros [N, groups].

    order: the group of each input.
    """
    order = np.arange(w.shape[1]) // (w.shape[1] // groups) if order is None else order
    top = (1 << bits) - 1
    scales, zeros = np.zeros((len(w), groups), np.float16), np.zeros((len(w), groups), np.int64)
    q = np.zeros(w.shape, np.int64)
    for group in range(groups):
        part = w[:, order == group]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales[:, group] = (high - low) / top
        exact = scales[:, group].astype(np.float64)
        zeros[:, group] = (top + 1) // 2 if symmetric else np.clip(np.rint(-low / exact), 1, top)
        q[:, order == group] = np.clip(np.rint(part / exact[:, None]) + zeros[:, group, None], 0, top)
    return q, scales, zeros


def formula(q: Matrix, scales: Matrix, zeros: Matrix, order: Matrix | None = None) -> Matrix:
    """(q - zero) * scale of each weight's group, in float64."""
    order = np.arange(q.shape[1]) // (q.shape[1] // scales.shape[1]) if order is None else order
    return (q - zeros[:, order]) * scales.astype(np.float64)[:, order]


def awq(w: Matrix, size: int) -> Written:
    q, scales, zeros = integers(w, w.shape[1] // size, 4)
    places = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {
        "qweight": torch.from_numpy(packed_rows(q.T, 4, places)),
        "qzeros": torch.from_numpy(packed_rows(zeros.T, 4, places)),
        "scales": torch.from_numpy(scales.T.copy()),
    }
    return tensors, formula(q, scales, zeros)


def gptq(w: Matrix, size: int, bits: int = 4, version: int = 1, act_order: bool = False, index: bool = True) -> Written:
    groups, order = w.shape[1] // size, np.arange(w.shape[1]) // size
    if act_order:
        order = np.random.default_rng(w.shape[1]).permutation(order)
    q, scales, zeros = integers(w, groups, bits, order)
    tensors = {
        "qweight": torch.from_numpy(packed_rows(q, bits).T.copy()),
        "qzeros": torch.from_numpy(packed_rows((zeros - (version == 1)).T, bits)),
        "scales": torch.from_numpy(scales.T.copy()),
    }
    if index:
        tensors["g_idx"] = torch.from_numpy(order.astype(np.int32))
    return tensors, formula(q, scales, zeros, order)


def pack_quantized(
    w: Matrix, size: int | None, bits: int = 4, symmetric: bool = True, act_order: bool = False
) -> Written:
    """compressed-tensors; size: inputs of a group, None for channels."""
    size = size or w.shape[1]
    order = np.arange(w.shape[1]) // size
    if act_order:
        order = np.random.default_rng(w.shape[1]).permutation(order)
    q, scales, zeros = integers(w, w.shape[1] // size, bits, order, symmetric)
    scale = torch.from_numpy(scales).to(torch.bfloat16)
    tensors = {
        "weight_packed": torch.from_numpy(packed_rows(q, bits)),
        "weight_scale": scale,
        "weight_shape": torch.tensor(w.shape, dtype=torch.int64),
    }
    if not symmetric:
        tensors["weight_zero_point"] = torch.from_numpy(packed_rows(zeros.T, bits).T.copy())
    if act_order:
        tensors["weight_g_idx"] = torch.from_numpy(order.astype(np.int32))
    return tensors, formula(q, scale.float().numpy(), zeros, order)


def int_quantized(w: Matrix, symmetric: bool = True, size: int | None = None, whole: bool = False) -> Written:
    """compressed-tensors with int8: channels, groups, or one scale for the whole matrix."""
    source = w.reshape(1, -1) if whole else w
    size = source.shape[1] if whole else size or w.shape[1]
    q, scales, zeros = integers(source, source.shape[1] // size, 8, None, symmetric)
    values = formula(q, scales, zeros).reshape(w.shape)
    tensors = {
        "weight": torch.from_numpy((q - 128).astype(np.int8).reshape(w.shape)),
        "weight_scale": torch.from_numpy(scales.reshape(-1) if whole else scales),
    }
    if not symmetric:
        tensors["weight_zero_point"] = torch.from_numpy((zeros - 128).astype(np.int8))
    return tensors, values


def float8(
    w: Matrix, block: tuple[int, int], name: str, shape: tuple[int, ...] | None = None, kind: Any = None
) -> Written:
    """FP8 with a float32 scale for each block of the matrix, stored as weight_<name>. shape: of the scale tensor."""
    kind = kind or torch.float8_e4m3fn
    rows, columns = block
    counts = -(-w.shape[0] // rows), -(-w.shape[1] // columns)
    scales, values = np.zeros(counts, np.float32), np.zeros(w.shape)
    stored = torch.zeros(w.shape, dtype=kind)
    for i in range(counts[0]):
        for j in range(counts[1]):
            at = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            scales[i, j] = np.abs(w[at]).max() / torch.finfo(kind).max
            stored[at] = torch.from_numpy(w[at] / scales[i, j]).to(kind)
            values[at] = stored[at].double().numpy() * np.float64(scales[i, j])
    scale = torch.from_numpy(scales if shape is None else scales.reshape(shape))
    return {"weight": stored, f"weight_{name}": scale}, values


def write_quantized(
    source: Path, folder: Path, write: Callable[[Matrix], Written], config: dict[str, Any], skip: tuple[str, ...] = ()
) -> Path:
    """Writes `source`, a checkpoint of floats, with its linear layers quantized: `folder`/quantized.

    Writes the same values as float32 to `folder`/floats. skip: layers that stay floats.
    """
    tensors = load_file(source / "model.safetensors")
    quantized, floats = {}, {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module.endswith(LINEARS) and not module.endswith(skip or ("none",)):
            parts, values = write(tensor.double().numpy())
            quantized |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
            floats[name] = torch.from_numpy(values.astype(np.float32))
        else:
            quantized[name] = floats[name] = tensor
    for part, held in (("quantized", quantized), ("floats", floats)):
        (folder / part).mkdir(parents=True)
        for file in source.iterdir():
            if file.suffix == ".json":
                shutil.copy(file, folder / part)
        save_file(held, folder / part / "model.safetensors", {"format": "pt"})
    path = folder / "quantized" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    return folder
