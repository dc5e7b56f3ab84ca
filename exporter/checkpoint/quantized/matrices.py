"""The quantized matrices of a checkpoint, each read some rows at a time.

The value of a weight is (q - zero) * scale, with the scale and the zero point of its group of inputs: of AWQ (AutoAWQ's
layout gemm), of GPTQ (AutoGPTQ and GPTQModel) and of the integers of compressed-tensors. float32 holds this product
exactly if the scale is a float16 or bfloat16. The value of an FP8 weight is the number times its scale, in float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellama.errors import UserError
from edgellama.limited.expressions import check_expressions

from ..finite import check_finite
from .grid import Floats, FourBits, Grid
from .scheme import Scheme, WeightGroup
from .stored import FLOATS, FLOATS8, StoredTensors

AGAIN = "Download the checkpoint again. If its publisher has the same file, use another checkpoint"
# What the runtimes of these formats need for activations and caches, which an artifact computes in floats.
UNUSED = re.compile(
    r".*\.(input_scale|input_zero_point|output_scale|output_zero_point|activation_scale"
    r"|(q|k|v|kv|prob)_(scale|zero_point))"
)
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word each of eight columns is


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantized matrix [N, K].

    Attributes:
        kind: the method and the bits.
        rows: first, count -> float32 [count, K].
        grid: first, count -> the same rows as integers, of as many bits as the matrix has.
        four_bits: what the grid is if it has 4 bits and a scale for each group of a row; None: it is another one.
        parts: the stored tensors that it is made of.
    """

    kind: str
    shape: tuple[int, int]
    rows: Callable[[int, int], Floats]
    grid: Callable[[int, int], Grid] | None
    four_bits: FourBits | None
    parts: tuple[str, ...]


def quantized_matrices(scheme: Scheme, stored: StoredTensors) -> dict[str, QuantizedMatrix]:
    """Return the quantized matrices of a checkpoint by the name of the weight: "model....q_proj.weight".

    Raises UserError, which names the tensor, if one is missing, or has a wrong dtype or shape.
    """
    found = {}
    modules = {name.rpartition(".")[0] for name in stored.names()}
    check_expressions(scheme.expressions(), modules, f"{stored.path}: config_groups in the config", AGAIN)
    for name in stored.names():
        module, _, kind = name.rpartition(".")
        if scheme.method in ("awq", "gptq") and kind == "qweight":
            found[f"{module}.weight"] = (_awq if scheme.method == "awq" else _gptq)(module, scheme, stored)
        elif kind == "weight_packed" or (kind == "weight" and stored.dtype(name) in ("I8", *FLOATS8)):
            if scheme.method == "compressed-tensors":
                found[name.replace("weight_packed", "weight")] = _compressed(module, scheme, stored)
            elif scheme.method == "fp8" and kind == "weight" and stored.dtype(name) in FLOATS8:
                found[name] = _float8(module, scheme.block, stored)
    return found


def _awq(module: str, scheme: Scheme, stored: StoredTensors) -> QuantizedMatrix:
    """AutoAWQ: qweight int32 [K, N/8], qzeros int32 [groups, N/8], scales [groups, N]; a word holds eight columns."""
    weight, zero, scale = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    inner, words = _checked(stored, weight, ("I32",), (None, None))
    outer = words * 8
    groups = _groups(stored, weight, inner, scheme.group_size, scale, 0)
    _checked(stored, zero, ("I32",), (groups, words))
    _checked(stored, scale, FLOATS, (groups, outer))

    def unpacked(name: str, first: int, count: int) -> NDArray[np.uint8]:
        begin, end = first // 8, -(-(first + count) // 8)
        nibbles = _unpacked(stored.read(name, slice(None), slice(begin, end)), 4)[..., _AWQ_ORDER]
        return nibbles.reshape(len(nibbles), -1)[:, first - 8 * begin :][:, :count].T

    def grid(first: int, count: int) -> Grid:
        count = min(count, outer - first)
        scales = _scales(stored, scale, slice(None), slice(first, first + count)).T
        q, zeros = unpacked(weight, first, count), unpacked(zero, first, count)
        return Grid(np.ascontiguousarray(q), np.ascontiguousarray(scales), zeros.astype(np.int16), None)

    four_bits = _four_bits(stored, scale, inner // groups)
    return _integers("AWQ 4 bits", (outer, inner), grid, four_bits, (weight, zero, scale))


def _gptq(module: str, scheme: Scheme, stored: StoredTensors) -> QuantizedMatrix:
    """GPTQ: qweight int32 [K*bits/32, N], qzeros int32 [groups, N*bits/32], scales [groups, N], g_idx int32 [K].

    A word of qweight holds inputs, a word of qzeros columns, both in order. The layout v1 stores each zero point
    less 1.
    """
    weight, zero, scale, index = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
    words, outer = _checked(stored, weight, ("I32",), (None, None))
    scales_shape = _checked(stored, scale, FLOATS, (None, outer))
    held = _checked(stored, zero, ("I32",), (scales_shape[0], None))[1]
    bits = next((bits for bits in (4, 8) if held * 32 == outer * bits), None)
    if bits is None:
        raise UserError(
            f"{stored.path}: {zero} is {list(stored.shape(zero))} for {outer} columns; an export reads GPTQ with 4 "
            f"or 8 bits. {AGAIN}"
        )
    each = 32 // bits
    inner = words * each
    groups = _groups(stored, weight, inner, scheme.group_size, scale, 0)
    has_index = index in stored
    if not has_index and scheme.ordered:
        raise UserError(f"{stored.path} lacks {index}, which act-order needs (desc_act in the config). {AGAIN}")
    order = _order(stored, index, inner, groups) if has_index else None

    def grid(first: int, count: int) -> Grid:
        count = min(count, outer - first)
        columns = slice(first, first + count)
        scales = np.ascontiguousarray(_scales(stored, scale, slice(None), columns).T)
        q = _unpacked(stored.read(weight, slice(None), columns), bits).transpose(1, 0, 2)
        begin, end = first // each, -(-(first + count) // each)
        held = _unpacked(stored.read(zero, slice(None), slice(begin, end)), bits).reshape(groups, -1)
        zeros = held[:, first - each * begin :][:, :count].T.astype(np.int16) + np.int16(scheme.zero_offset)
        if zeros.size and zeros.max() >= 1 << bits:
            raise UserError(
                f"{stored.path}: {zero} has the zero point {zeros.max()}, outside 0..{(1 << bits) - 1}. The runtimes "
                "of GPTQ read it in different ways. Save the checkpoint with checkpoint_format gptq_v2"
            )
        return Grid(q.reshape(count, inner), scales, zeros, order)

    parts = (weight, zero, scale, *((index,) if has_index else ()))
    four_bits = _four_bits(stored, scale, inner // groups if order is None else None)
    return _integers(f"GPTQ {bits} bits", (outer, inner), grid, four_bits if bits == 4 else None, parts)


def _compressed(module: str, scheme: Scheme, stored: StoredTensors) -> QuantizedMatrix:
    """compressed-tensors: weight_packed int32 [N, K*bits/32] and weight_shape, or weight int8 or FP8 [N, K].

    weight_scale is [N, groups], [N, 1], [1] or, for blocks, [N/128, K/128]. weight_zero_point is like weight_scale, of
    int8, or packed along N. Packed integers have an offset: 8 for 4 bits, 128 for 8 bits.
    """
    group = scheme.group_of(module)
    if group is None:
        raise UserError(
            f"{stored.path}: {module} is quantized, and no config group in config.json describes it. {AGAIN}"
        )
    packed = f"{module}.weight_packed"
    weight = packed if packed in stored else f"{module}.weight"
    if stored.dtype(weight) in FLOATS8:
        if not group.is_float:
            raise _wrong_type(stored, weight, "integers")
        size = group.group_size if group.strategy == "group" else None
        return _float8(module, group.block if size is None else (1, size), stored)
    if group.is_float:
        raise _wrong_type(stored, weight, "8-bit floats")
    return _compressed_integers(module, weight, group, stored)


def _compressed_integers(module: str, weight: str, group: WeightGroup, stored: StoredTensors) -> QuantizedMatrix:
    scale, zero, index, size = (f"{module}.weight_{x}" for x in ("scale", "zero_point", "g_idx", "shape"))
    bits, each = group.bits, 32 // group.bits
    is_packed = weight.endswith("weight_packed")
    outer, width = _checked(stored, weight, ("I32",) if is_packed else ("I8",), (None, None))
    inner = width * each if is_packed else width
    if is_packed and size in stored:
        _checked(stored, size, ("I64", "I32"), (2,))
        described = tuple(int(x) for x in stored.read(size))
        if described[0] != outer or -(-described[1] // each) != width:
            raise UserError(f"{stored.path}: {weight} {[outer, width]} does not fit {size} {list(described)}. {AGAIN}")
        inner = described[1]
    rows, groups, unit = _scale_shape(stored, scale, weight, (outer, inner), group)
    ordered = index in stored
    order = _order(stored, index, inner, groups, unset=-1) if ordered else None
    if group.ordered and not ordered:
        raise UserError(f"{stored.path} lacks {index}, which act-order needs (actorder in the config). {AGAIN}")
    if not group.symmetric and zero not in stored:
        raise UserError(f"{stored.path} lacks {zero}, which asymmetric weights need (symmetric in the config). {AGAIN}")
    zeros_packed = zero in stored and stored.dtype(zero) == "I32"
    if zeros_packed:
        _checked(stored, zero, ("I32",), (-(-rows // each), groups))
    elif zero in stored and math.prod(stored.shape(zero)) != rows * groups:
        raise _wrong_shape(stored, zero, f"{rows * groups} zero points")
    elif zero in stored:
        _checked(stored, zero, ("I8",), stored.shape(zero))
    half = 1 << (bits - 1)

    def zero_points(begin: int, end: int) -> NDArray[np.int16]:
        """Return the zero points of rows [begin, end) of the scales."""
        if zero not in stored:
            return np.full((end - begin, groups), half, np.int16)
        if zeros_packed:
            first = begin // each
            held = _unpacked(stored.read(zero, slice(first, -(-end // each))), bits)  # [words, groups, each]
            return held.transpose(0, 2, 1).reshape(-1, groups)[begin - each * first :][: end - begin].astype(np.int16)
        signed = stored.read(zero).reshape(rows, groups)[begin:end].astype(np.int16)
        if signed.size and (signed.min() < -half or signed.max() >= half):
            wrong = signed.min() if signed.min() < -half else signed.max()
            raise UserError(f"{stored.path}: {zero} has the zero point {wrong}, outside {-half}..{half - 1}. {AGAIN}")
        return signed + np.int16(half)

    def grid(first: int, count: int) -> Grid:
        count = min(count, outer - first)
        held = stored.read(weight, slice(first, first + count))
        q = _unpacked(held, bits).reshape(count, -1)[:, :inner] if is_packed else _offset(held, half)
        begin, end = first // unit, -(-(first + count) // unit)
        repeated = np.arange(first, first + count) // unit - begin  # the row of scales of each row
        scales = _scales(stored, scale).reshape(rows, groups)[begin:end][repeated]
        return Grid(np.ascontiguousarray(q), scales, zero_points(begin, end)[repeated], order)

    parts = tuple(x for x in (weight, scale, zero, index, size) if x in stored)
    four_bits = _four_bits(stored, scale, inner // groups if order is None else None)
    by_rows = bits == 4 and unit == 1
    return _integers(f"compressed-tensors int{bits}", (outer, inner), grid, four_bits if by_rows else None, parts)


def _offset(held: NDArray[np.int8], half: int) -> NDArray[np.uint8]:
    return (held.astype(np.int16) + half).astype(np.uint8)


def _scale_shape(
    stored: StoredTensors, scale: str, weight: str, shape: tuple[int, int], group: WeightGroup
) -> tuple[int, int, int]:
    """Return the rows and columns of a scale tensor, and the rows of the weight that share a row of it."""
    outer, inner = shape
    if group.strategy == "group":
        groups = _groups(stored, weight, inner, group.group_size, scale, 1)
        _checked(stored, scale, FLOATS, (outer, groups))
        return outer, groups, 1
    if group.strategy == "block" and group.block is not None:
        rows, columns = group.block
        if inner % columns:
            raise UserError(
                f"{stored.path}: {weight} has {inner} inputs, and blocks of {columns} do not divide them. {AGAIN}"
            )
        blocks = (-(-outer // rows), inner // columns)
        _checked(stored, scale, FLOATS, blocks)
        return *blocks, rows
    needed: tuple[int, int, int] = (outer, 1, 1) if group.strategy == "channel" else (1, 1, outer)
    if math.prod(_checked(stored, scale, FLOATS, stored.shape(scale) if scale in stored else ())) != needed[0]:
        raise _wrong_shape(stored, scale, f"{needed[0]} scales")
    return needed


def _float8(module: str, block: tuple[int, int] | None, stored: StoredTensors) -> QuantizedMatrix:
    """FP8: weight [N, K], and weight_scale_inv or weight_scale, which multiplies it.

    The scale is [N/rows, K/columns] for blocks (the last ones may be smaller), [N] or [N, 1] for channels, or one
    number.
    """
    weight = f"{module}.weight"
    names = [name for name in (f"{weight}_scale_inv", f"{weight}_scale") if name in stored]
    if len(names) != 1:
        found = "lacks" if not names else "has both"
        raise UserError(f"{stored.path} {found} {weight}_scale_inv and {weight}_scale; needed: one of them. {AGAIN}")
    scale = names[0]
    outer, inner = _checked(stored, weight, FLOATS8[:2], (None, None))
    shape = _checked(stored, scale, (*FLOATS, FLOATS8[2]), stored.shape(scale))
    if block is not None:
        rows, columns = block
        _checked(stored, scale, (*FLOATS, FLOATS8[2]), (-(-outer // rows), -(-inner // columns)))
    elif math.prod(shape) in (1, outer) and shape[:1] in ((), (1,), (outer,)):
        rows, columns = (outer if math.prod(shape) == 1 else 1), inner
    else:
        raise _wrong_shape(stored, scale, f"one number, or {outer} (one for each channel)")

    def values(first: int, count: int) -> Floats:
        count = min(count, outer - first)
        begin, end = first // rows, -(-(first + count) // rows)
        held = _scales(stored, scale).reshape(-(-outer // rows), -1)[begin:end]
        repeated = held[np.arange(first, first + count) // rows - begin]
        scales = repeated if repeated.shape[1] == 1 else np.repeat(repeated, columns, axis=1)[:, :inner]
        return np.asarray(stored.read(weight, slice(first, first + count)) * scales, np.float32)

    return QuantizedMatrix(stored.dtype(weight), (outer, inner), values, None, None, (weight, scale))


def _integers(
    kind: str,
    shape: tuple[int, int],
    grid: Callable[[int, int], Grid],
    four_bits: FourBits | None,
    parts: tuple[str, ...],
) -> QuantizedMatrix:
    return QuantizedMatrix(kind, shape, lambda first, count: grid(first, count).values(), grid, four_bits, parts)


def _four_bits(stored: StoredTensors, scale: str, group: int | None) -> FourBits:
    return FourBits(group, None if stored.dtype(scale) == "F16" else lambda: _scales(stored, scale))


def _unpacked(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return the integers of 32-bit words [...]: [..., 32 / bits], those of the lower bits first."""
    octets = np.ascontiguousarray(words, "<i4").view(np.uint8).reshape(*words.shape, 4)
    if bits == 8:
        return octets
    return np.stack([octets & 15, octets >> 4], axis=-1).reshape(*words.shape, 8)


def _scales(stored: StoredTensors, name: str, *parts: slice) -> Floats:
    """Return scales as float32. Raises UserError if one is NaN or infinite."""
    values: Floats = stored.read(name, *parts)
    check_finite(stored.path, name, 0, values.reshape(max(len(values), 1) if values.ndim else 1, -1))
    return values


def _order(
    stored: StoredTensors, name: str, inner: int, groups: int, unset: int | None = None
) -> NDArray[np.int64] | None:
    """Return the group of each input; None if the groups are equal runs of inputs.

    unset: the number that stands for this order.
    """
    _checked(stored, name, ("I32", "I64"), (inner,))
    order = stored.read(name).astype(np.int64)
    if unset is not None and (order == unset).all():
        return None
    if order.size and (order.min() < 0 or order.max() >= groups):
        wrong = order.min() if order.min() < 0 else order.max()
        raise UserError(f"{stored.path}: {name} has the group {wrong}, outside 0..{groups - 1}. {AGAIN}")
    runs = inner % groups == 0 and (order == np.arange(inner) // (inner // groups)).all()
    return None if runs else order


def _groups(stored: StoredTensors, weight: str, inner: int, size: int | None, scale: str, axis: int) -> int:
    """Return the number of groups of inputs, from the scales. It must be that of the config's group size."""
    shape = _checked(stored, scale, FLOATS, (None, None))
    size = inner if size == -1 else size
    if size is None and shape[axis] and inner % shape[axis] == 0:
        return shape[axis]
    size = size or -(-inner // max(shape[axis], 1))
    if not inner or inner % size:
        raise UserError(f"{stored.path}: {weight} has {inner} inputs, and groups of {size} do not divide them. {AGAIN}")
    if shape[axis] != inner // size:
        raise _wrong_shape(stored, scale, f"{inner // size} groups of {size} inputs")
    return inner // size


def _checked(
    stored: StoredTensors, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]
) -> tuple[int, ...]:
    """Return the shape of a tensor. Raises UserError if the tensor is missing, or has another dtype or shape.

    shape: None stands for any size.
    """
    if name not in stored:
        raise UserError(f"{stored.path} lacks {name}, which the quantized weights need. {AGAIN}")
    found = stored.shape(name)
    if stored.dtype(name) not in dtypes:
        raise _wrong_type(stored, name, " or ".join(dtypes))
    if len(found) != len(shape) or any(wanted not in (None, size) for size, wanted in zip(found, shape, strict=True)):
        raise _wrong_shape(stored, name, str([("any" if size is None else size) for size in shape]))
    return found


def _wrong_shape(stored: StoredTensors, name: str, needed: str) -> UserError:
    return UserError(f"{stored.path}: {name} is {list(stored.shape(name))}; needed: {needed}. {AGAIN}")


def _wrong_type(stored: StoredTensors, name: str, needed: str) -> UserError:
    return UserError(f"{stored.path}: {name} is {stored.dtype(name)}; needed: {needed}. {AGAIN}")
