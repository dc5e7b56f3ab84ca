"""The numpy definition of the packed formats: byte by byte against the layout of weight_format.h, and against GGUF."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from edgellama.kernels import weight_format as wf
from edgellama.kernels.cpu.packing import pack, pack_quantized
from support.linear_calls import awkward_weights

HEAD = 128  # bytes of the scales of a panel of three groups: 3 * 16 * 2 = 96, padded to 64


def wf_steps(fmt: str) -> int:
    """Weights along K that share a scale."""
    return int(fmt.removeprefix("w4g")) if fmt.startswith("w4g") else 32


def panel_values(panel: NDArray[np.uint8], fmt: str, groups: int) -> NDArray[np.float32]:
    """Reads one panel number by number, as the comment in weight_format.h describes it: float32 [16, 32 * groups]."""
    out = np.zeros((16, 32 * groups), np.float32)
    steps = wf_steps(fmt)
    count = -(-32 * groups // steps)  # scales of a column
    head = -(-count * (48 if fmt.startswith("w4") else 32) // 64) * 64
    for column in range(16):
        for k in range(32 * groups):
            if fmt == "f32":
                out[column, k] = panel.view(np.float32)[k * 16 + column]
                continue
            if fmt == "bf16":
                out[column, k] = panel.view(ml_dtypes.bfloat16)[(k // 2) * 32 + column * 2 + k % 2]
                continue
            cell = panel[: count * 32].view(np.uint16)[(k // steps) * 16 + column]
            if fmt == "int8":
                q, zero = int(panel[head + (k // 4) * 64 + column * 4 + k % 4]), 128.0
            else:
                byte = int(panel[head + (k // 8) * 64 + column * 4 + k % 4])
                q, zero = (byte >> 4 if k % 8 >= 4 else byte & 15), 8.0
            if fmt == "int4":
                zero, cell = (int(cell) & 63) / 4, np.uint16((int(cell) >> 6) << 5)
            if fmt.startswith("w4"):
                zero = int(panel[count * 32 + (k // steps) * 16 + column]) / 4
            out[column, k] = np.float32(cell.view(np.float16)) * (q - zero)
    return out


@pytest.mark.parametrize(
    ("n", "k", "sizes"),
    [
        (1, 1, {"f32": 2048, "bf16": 1024, "int8": 64 + 512, "int4": 64 + 256, "w4g32": 320, "w4g64": 320}),
        (16, 32, {"f32": 2048, "bf16": 1024, "int8": 64 + 512, "int4": 64 + 256, "w4g32": 320, "w4g64": 320}),
        (17, 33, {"f32": 8192, "bf16": 4096, "int8": 2176, "int4": 1152, "w4g32": 2 * (128 + 512), "w4g64": 1152}),
        (33, 96, {"f32": 18432, "bf16": 9216, "int8": 4992, "int4": 2688, "w4g32": 3 * 960, "w4g64": 3 * 896}),
        (16, 256, {"f32": 16384, "bf16": 8192, "int8": 4352, "int4": 2304, "w4g32": 384 + 2048, "w4g64": 192 + 2048}),
    ],
)
def test_sizes_are_whole_panels_and_groups(n: int, k: int, sizes: dict[str, int]) -> None:
    sizes |= {"q4_0": sizes["int4"], "w4g128": -(-n // 16) * (64 * -(-k // 128) + -(-k // 32) * 256)}
    assert {fmt: wf.packed_bytes(fmt, n, k) for fmt in wf.FORMATS} == sizes
    assert {fmt: wf.panel_bytes(fmt, k) * wf.panel_count(n) for fmt in wf.FORMATS} == sizes
    assert [wf.round_up(number, 8) for number in (0, 1, 8, 9)] == [0, 8, 8, 16]


@pytest.mark.parametrize("fmt", ["f32", "bf16", "int8", "int4", *wf.W4_GROUPS])
def test_a_packed_matrix_is_read_number_by_number(fmt: str) -> None:
    """`unpack` and the layout agree, padding included; 33 x 70 fills neither the last panel nor the last group."""
    w = np.random.default_rng(1).standard_normal((33, 70)).astype(np.float32)
    packed = wf.pack(w, fmt)
    assert packed.dtype == np.uint8 and packed.shape == (wf.packed_bytes(fmt, 33, 70),)
    whole = np.concatenate([panel_values(panel, fmt, 3) for panel in packed.reshape(3, -1)])
    np.testing.assert_array_equal(wf.unpack(packed, fmt, 33, 70), whole[:33, :70])
    np.testing.assert_array_equal(wf.unpack(packed, fmt, 48, 96), whole)
    np.testing.assert_array_equal(whole[33:], 0)
    assert np.abs(whole[:33, 70:]).max() < 0.2  # zero, or the nearest that int4 has to it
    most = {"f32": 0, "bf16": 0.02, "int8": 0.02, "int4": 0.3, "w4g32": 0.3, "w4g64": 0.3, "w4g128": 0.3}
    np.testing.assert_allclose(whole[:33, :70], w, atol=most[fmt])
    if fmt in ("int8", "int4"):
        assert not packed.reshape(3, -1)[:, 96:HEAD].any()  # the padding of the scales
    if fmt in wf.W4_GROUPS:
        count = wf.scale_count(fmt, 70)
        assert not packed.reshape(3, -1)[:, count * 48 : -(-count * 48 // 64) * 64].any()


@pytest.mark.parametrize("fmt", ["w4g32", "w4g64", "w4g128"])
@pytest.mark.parametrize("k", [96, 256])
def test_a_grid_of_four_bits_is_read_number_by_number(fmt: str, k: int) -> None:
    """Scales of any sign, and every zero point in quarters: whole and fractional ones."""
    rng, count = np.random.default_rng(2), -(-k // wf_steps(fmt))
    scales = (rng.standard_normal((16, count)) / 8).astype(np.float16)
    zeros = rng.permuted(np.resize(np.arange(65, dtype=np.int8), (16, count)))
    q = rng.integers(0, 16, (16, k), dtype=np.uint8)
    packed = wf.pack_groups(fmt, scales.view(np.uint16), q, zeros)
    steps = np.arange(k) // wf_steps(fmt)
    values = scales.astype(np.float64)[:, steps] * (q - zeros.astype(np.float64)[:, steps] / 4)
    np.testing.assert_array_equal(panel_values(packed, fmt, k // 32), values)  # float32 holds each exactly
    np.testing.assert_array_equal(wf.unpack(packed, fmt, 16, k), values)
    np.testing.assert_array_equal(pack_quantized(fmt, scales.view(np.uint16), q, 1, zeros), packed)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_quantizing_to_a_grid_of_four_bits_loses_half_a_step(group: int) -> None:
    """Also for a group of zeros, of one sign, and one that no float16 scale spans well."""
    w = np.random.default_rng(9).standard_normal((20, 192)).astype(np.float32)
    w[0], w[1], w[2], w[3] = 0, np.abs(w[1]), -np.abs(w[2]), w[3] * 1e-6
    fmt = f"w4g{group}"
    scales, q, zeros = wf.quantize_w4(w, group)
    assert (scales.shape, q.shape, zeros.shape) == ((20, -(-192 // group)), (20, 192), (20, -(-192 // group)))
    assert zeros.min() >= 0 and zeros.max() <= wf.QUARTERS and q.max() <= 15
    steps = scales.view(np.float16).astype(np.float32)[:, np.arange(192) // group]
    assert (np.abs(wf.unpack(wf.pack(w, fmt), fmt, 20, 192) - w) <= 0.64 * steps + 1e-7).all()


def test_the_range_of_a_group_of_four_bits_includes_zero() -> None:
    w = np.ones((4, 32), np.float32)
    w[0, ::2], w[1], w[1, ::2] = 3.0, -1.0, -3.0
    w[2], w[3] = 0.5, -21 * 2.0**-24  # the scale of the last row rounds down by a third, to the least float16
    scales, q, zeros = wf.quantize_w4(w, 32)
    steps = np.array([[3 / 15], [3 / 15], [0.5 / 15], [2.0**-24]], np.float16)
    np.testing.assert_array_equal(scales.view(np.float16), steps)
    assert zeros.tolist() == [[0], [60], [0], [64]]
    assert [sorted(set(row.tolist())) for row in q] == [[5, 15], [0, 10], [15], [0]]


@pytest.mark.parametrize("fmt", ["int8", "int4", "q4_0"])
def test_quantized_groups_are_read_number_by_number(fmt: str) -> None:
    rng = np.random.default_rng(2)
    scales = (rng.standard_normal((16, 3)) / 8).astype(np.float16).view(np.uint16)
    q = rng.integers(0, 256 if fmt == "int8" else 16, (16, 96), dtype=np.uint8)
    packed = wf.pack_groups(fmt, scales, q)
    values = panel_values(packed, fmt, 3)
    np.testing.assert_array_equal(wf.unpack(packed, fmt, 16, 96), values)
    if fmt != "int4":
        d = scales.view(np.float16).astype(np.float32).repeat(32, axis=1)
        np.testing.assert_array_equal(values, d * (q - np.float32(128 if fmt == "int8" else 8)))
    np.testing.assert_array_equal(pack_quantized(fmt, scales, q, 1), packed)


def test_bfloat16_rounds_as_ml_dtypes_does() -> None:
    rng = np.random.default_rng(3)
    bits = np.concatenate([rng.integers(0, 1 << 32, 4000), (rng.integers(0, 1 << 16, 4000) << 16) | 0x8000])
    floats = bits.astype(np.uint32).view(np.float32)
    floats = floats[np.isfinite(floats)]
    np.testing.assert_array_equal(wf.to_bf16(floats), floats.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_int8_finds_the_scales_and_steps_of_q8_0_again() -> None:
    w = awkward_weights()[:, :96].copy()
    blocks = quantize(w, Kind.Q8_0).reshape(37, 3, 34)
    scales, q = wf.quantize_int8(dequantize(quantize(w, Kind.Q8_0), Kind.Q8_0))
    assert (scales.dtype, scales.shape, q.dtype, q.shape) == (np.uint16, (37, 3), np.uint8, (37, 96))
    np.testing.assert_array_equal(scales, np.ascontiguousarray(blocks[..., :2]).view(np.uint16)[..., 0])
    steps = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).astype(int).reshape(37, 96)
    tiny = (scales.view(np.float16).astype(np.float32) < 1e-6).repeat(32, axis=1)  # subnormal scales round differently
    np.testing.assert_array_equal(q.astype(int)[~tiny] - 128, steps[~tiny])
    assert (q[0] == 128).all() and (scales[0] == 0).all()


def test_int8_rounds_ties_to_even_and_keeps_127_steps() -> None:
    w = np.zeros((1, 32), np.float32)
    w[0, :7] = 127, 0.5, 1.5, 2.5, -0.5, -1.5, -127
    scales, q = wf.quantize_int8(w)
    assert scales.view(np.float16).tolist() == [[1.0]]
    assert (q[0, :8].astype(int) - 128).tolist() == [127, 0, 2, 2, 0, -2, -127, 0]
    w[0, :2] = 1.4 * 127 * 2.0**-24, -1.4 * 127 * 2.0**-24  # the scale rounds to the least float16, 2^-24
    w[0, 2:] = 0
    scales, q = wf.quantize_int8(w)
    assert scales.tolist() == [[1]] and q[0, :3].tolist() == [255, 1, 128]


def best_error(group: NDArray[np.float32], codes: range) -> float:
    """Returns the least squared error of a group among these scale codes and all 64 zero points."""
    d = np.array([np.uint16(code << 5).view(np.float16) for code in codes], np.float64)[:, None, None]
    zero = np.arange(64)[None, :, None] / 4
    q = np.clip(np.rint(group / d + zero), 0, 15)
    return float((((q - zero) * d - group) ** 2).sum(axis=-1).min())


def test_int4_is_close_to_the_best_scale_and_zero_point_of_all() -> None:
    """The search tries 48 of 61,440 pairs. Groups of one sign, with an outlier, and shifted ones are among these."""
    rng = np.random.default_rng(4)
    w = rng.standard_normal((24, 32)).astype(np.float32)
    w[:6] = np.abs(w[:6])
    w[6:12] = -np.abs(w[6:12])
    w[12, 5] = 9
    w[13:18] += 3
    scales, q = wf.quantize_int4(w)
    assert (scales.dtype, scales.shape, q.dtype, q.shape) == (np.uint16, (24, 1), np.uint8, (24, 32))
    found = (wf.unpack(wf.pack(w, "int4"), "int4", 24, 32).astype(np.float64) - w) ** 2
    for row, group in enumerate(w):
        middle = int(scales[row, 0]) >> 6
        best = best_error(group, range(max(1, middle - 40), middle + 40))
        assert found[row].sum() <= 1.4 * best, row


def test_int4_keeps_its_scales_normal_and_finite() -> None:
    """The largest and the smallest code hold for groups that no normal float16 scale spans."""
    w = np.zeros((4, 32), np.float32)
    w[0], w[1], w[2, 3], w[3, 3] = 1e-9, 0, 3e6, -3e6
    scales, q = wf.quantize_int4(w)
    codes = (scales >> 6)[:, 0].tolist()
    assert codes == [wf.LEAST_CODE, wf.LEAST_CODE, wf.MOST_CODE, wf.MOST_CODE]
    d = (scales & 0xFFC0).__rshift__(1).astype(np.uint16).view(np.float16)
    assert np.isfinite(d).all() and (d >= np.finfo(np.float16).tiny).all()
    assert not wf.unpack(wf.pack(w, "int4"), "int4", 4, 32)[1].any()
    assert (q[2, 3], q[3, 3]) == (15, 0)


@pytest.mark.parametrize("fmt", ["f32", "bf16", "int8", "int4"])
def test_the_librarys_packer_writes_the_same_bytes(fmt: str) -> None:
    for w in (awkward_weights(), awkward_weights()[:32, :96], awkward_weights().T):
        packed = pack(w, fmt, 2)
        assert packed.dtype == np.uint8
        np.testing.assert_array_equal(packed, wf.pack(w, fmt))


def test_quantized_shapes_that_do_not_fit_are_refused() -> None:
    for scales, q in (((16, 3), (16, 64)), ((15, 2), (16, 64)), ((16, 2), (16, 65)), ((16, 2, 1), (16, 64))):
        with pytest.raises(ValueError, match="do not fit"):
            pack_quantized("int8", np.zeros(scales, np.uint16), np.zeros(q, np.uint8), 1)
    wide, narrow, wider = (np.zeros((16, count), np.int8) for count in (2, 1, 3))
    for fmt, zeros in (("int8", wide), ("w4g32", None), ("w4g32", narrow), ("w4g32", wider)):
        with pytest.raises(ValueError, match="do not fit"):
            pack_quantized(fmt, np.zeros((16, 2), np.uint16), np.zeros((16, 64), np.uint8), 1, zeros)
    with pytest.raises(ValueError, match="refuses w4g32"):
        pack(np.zeros((16, 32), np.float32), "w4g32", 1)
    assert pack_quantized("int8", np.zeros((16, 31), np.uint16), np.zeros((16, 992), np.uint8), 1).size == 16 * 1056


@pytest.mark.parametrize("rows", [16, 20, 24, 40])
def test_gate_and_up_alternate_by_panels(rows: int) -> None:
    gate = np.arange(1, rows * 3 + 1).reshape(rows, 3)
    both = wf.interleave_gate_up(gate, -gate)
    panels = -(-rows // 16)
    assert both.shape == (panels * 32, 3)
    for panel in range(panels):
        here = gate[panel * 16 : panel * 16 + 16]
        for first, wanted in ((panel * 32, here), (panel * 32 + 16, -here)):
            np.testing.assert_array_equal(both[first : first + len(here)], wanted)
            assert not both[first + len(here) : first + 16].any()


@pytest.mark.parametrize(("dim", "rotated"), [(8, 8), (8, 4), (16, 4), (20, 10), (96, 72)])
def test_a_head_with_plain_elements_pairs_those_that_are_rotated_together(dim: int, rotated: int) -> None:
    """The kernels rotate element i with element i + dim/2, by the angle i.

    They do not rotate the elements from angle rotated/2 on.
    """
    order = wf.head_order(dim, rotated)
    if dim == rotated:
        assert order is None
        return
    assert order is not None and sorted(order.tolist()) == list(range(dim))
    pairs = list(zip(order[: dim // 2].tolist(), order[dim // 2 :].tolist(), strict=True))
    assert pairs[: rotated // 2] == [(i, i + rotated // 2) for i in range(rotated // 2)]
    plain = (dim - rotated) // 2
    assert pairs[rotated // 2 :] == [(rotated + i, rotated + plain + i) for i in range(plain)]
