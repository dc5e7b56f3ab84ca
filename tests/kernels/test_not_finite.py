"""A NaN or an infinity in an activation, a weight or a cache never becomes a number, on any instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from edgellama.kernels import reference
from edgellama.kernels import weight_format as wf
from edgellama.kernels.cpu.library import available_isas
from support.attention_calls import CACHES, Case, bind, call
from support.linear_calls import Linear

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns of inf - inf in the reference
NOT_FINITE = [np.nan, -np.nan, np.inf, -np.inf]


def with_bits(bits: int, dtype: type) -> np.ndarray:
    """A NaN with an unusual payload."""
    return np.array([bits], np.uint16 if dtype == np.float16 else np.uint32).view(dtype)[0]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("fmt", wf.FORMATS)
@pytest.mark.parametrize("rows", [1, 7, 13, 40])
@pytest.mark.parametrize("norm", [False, True])
def test_activations(isa: str, fmt: str, rows: int, norm: bool) -> None:
    """The whole row is not finite, wherever the value is in a vector and a group. Other rows do not change."""
    case = Linear(fmt, [rows], rows, 100, 40, norm=norm)
    clean = case.run(isa)
    columns = [0, 7, 8, 15, 16, 31, 32, 63, 95, 96, 99]
    x = case.x.copy()
    for i, column in enumerate(columns):
        row, value = i % rows, NOT_FINITE[i % len(NOT_FINITE)]
        case.x = x.copy()
        case.x[0, row, column] = value
        got, want = case.run(isa), case.expected(isa)
        assert not np.isfinite(got[0, row]).any(), (column, value)
        assert not np.isfinite(want[0, row]).all()
        others = np.arange(rows) != row
        np.testing.assert_array_equal(got[0, others], clean[0, others])


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("fmt", wf.FORMATS)
@pytest.mark.parametrize("rows", [1, 13, 40])
def test_weights(isa: str, fmt: str, rows: int) -> None:
    """The float weights, and the scales of the integer formats."""
    for value in NOT_FINITE:
        case = Linear(fmt, [rows], rows, 96, 48)
        if fmt in ("f32", "bf16"):
            w = wf.unpack(case.packed, fmt, 48, 96)
            w[21, 50] = value
            case.packed[:] = wf.pack(w, fmt)
        else:
            bits = int(np.array(value, np.float16).view(np.uint16))
            scales = case.packed.reshape(3, -1)[1, : 3 * wf.PANEL * 2].view(np.uint16)
            scales[(wf.PANEL if wf.scale_count(fmt, 96) > 1 else 0) + 5] = bits << 1 & 0xFFFF if fmt == "int4" else bits
        assert not np.isfinite(case.run(isa)[0, :, 21]).any(), value
        assert not np.isfinite(case.expected(isa)[0, :, 21]).any(), value
        assert np.isfinite(np.delete(case.run(isa)[0], 21, axis=-1)).all()


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("which", ["k", "v"])
def test_caches(isa: str, cache: str, tokens: int, which: str) -> None:
    """A NaN at any visible position of the cache makes the outputs of its row and group NaN."""
    case = Case([70, 70], [tokens, tokens], tokens=tokens, heads=6, groups=2, capacity=110, cache=cache, isa=isa)
    kind = np.float16 if cache == "int8" else np.dtype(cache).type
    payloads = (0x7E00, 0x7FFF, 0xFFFF) if kind == np.float16 else (0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF)
    for n, position in enumerate((0, 1, 15, 37, 63, 64, 69)):
        x = case.arrays()
        bad = with_bits(payloads[n % 3], kind)
        if cache == "int8":
            x[f"{which}_scale"][1, 1, position] = bad
        else:
            x[f"{which}_cache"][1, 1, position, 5 * n] = bad
        args, _scratch = bind(case, x)
        call(args, isa)
        out = x["out"].reshape(2, tokens, 2, 3, 64)
        one = slice(5 * n, 5 * n + 1) if which == "v" and cache != "int8" else slice(None)
        assert np.isnan(out[1, :, 1, :, one]).all(), position
        assert np.isfinite(out[0]).all()
        assert np.isfinite(out[1, :, 0]).all()


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_new_keys_and_values(isa: str, cache: str, tokens: int, value: float) -> None:
    """The cache receives what the reference writes, and the output is not finite.

    The one exception is an infinite key in a float cache: its score may be -infinity, and the weight is then truly 0.
    """
    sizes = {"tokens": tokens, "heads": 2, "groups": 2, "head_dim": 40, "capacity": 9, "cache": cache, "isa": isa}
    case = Case([5, 5], [tokens, tokens], **sizes)
    heads = (4,) if np.isinf(value) and cache != "int8" else (2, 4)  # the first key head, the first value head
    for head in heads:
        x, y = case.arrays(), case.arrays()
        for arrays in (x, y):
            arrays["qkv"][1, 0, head * 40 + 33] = value
        args, _scratch = bind(case, x)
        call(args, isa)
        inputs = [y[name] for name in ("qkv", "cos", "sin", "start", "length", "k_cache", "v_cache")]
        scales = {name: y[name] for name in ("k_scale", "v_scale") if name in y}
        want = reference.fused_attention(*inputs, heads=2, scale=40**-0.5, **scales)
        for name in ("k_cache", "v_cache", "k_scale", "v_scale"):
            if name in y:
                np.testing.assert_array_equal(x[name], y[name], err_msg=name)
        assert np.isfinite(x["out"][0]).all()
        for out in (x["out"], want):
            assert not np.isfinite(out[1].reshape(tokens, 2, 40)[:, 0]).all(axis=-1).any()


def test_a_layer_of_the_reference_keeps_a_nan() -> None:
    rng = np.random.default_rng(0)
    hidden, tokens = 32, 3
    weights = [
        reference.LinearWeights(rng.standard_normal((rows, hidden), dtype=np.float32))
        for rows in (3 * hidden, hidden, 2 * hidden, hidden)
    ]
    h = rng.standard_normal((1, tokens, hidden), dtype=np.float32)
    table = np.ones((4, hidden // 2), np.float32)
    for token in range(tokens):
        bad = h.copy()
        bad[0, token, 3] = np.nan
        caches = [np.zeros((1, 1, 4, hidden), np.float32) for _ in range(2)]
        start, length = np.array([0]), np.array([2])
        sizes = {"heads": 1, "scale": 1.0, "eps": 1e-5}
        out = reference.decoder_layer(bad, start, length, table, table, *caches, *weights, **sizes)
        assert np.isnan(out[0, 1]).all() == (token < 2)  # token 2 is padding
