"""Compares the CPU's FusedAttention with kernels/reference.py, for every cache type and every available ISA."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgellama.kernels import reference
from edgellama.kernels.cpu.library import available_isas
from support.attention_calls import CACHES, NORMS, Case, bind, call, check, expected, run

# Query heads, key/value heads, head size: groups of 1, 3, 4 and 8 heads; sizes that fill vectors and tiles, or not.
HEADS = [
    *((1, 1, 20), (1, 1, 128), (3, 1, 64), (3, 1, 96), (9, 3, 64), (9, 3, 20), (8, 2, 80), (8, 2, 128)),
    *((8, 1, 20), (8, 1, 64), (8, 1, 128), (4, 4, 96), (4, 4, 80), (6, 1, 18)),
]


@pytest.fixture(params=available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=CACHES)
def cache(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(("heads", "groups", "head_dim"), HEADS)
def test_heads(isa: str, cache: str, heads: int, groups: int, head_dim: int) -> None:
    """Rows that decode, prefill and idle in one call."""
    sizes = {"heads": heads, "groups": groups, "head_dim": head_dim}
    check(Case([70, 3, 129, 0], [1, 21, 0, 1], tokens=21, cache=cache, isa=isa, **sizes))


@pytest.mark.parametrize("tokens", [1, 32, 130])
@pytest.mark.parametrize("start", [0, 1, 63, 64, 129])
def test_positions(isa: str, cache: str, start: int, tokens: int) -> None:
    """Lengths 0, 1, bucket - 1 and bucket, from every kind of start, within the capacity of 130."""
    lengths = sorted({0, 1, tokens - 1, tokens, 130 - start})
    lengths = [n for n in lengths if n <= tokens and start + n <= 130]
    check(Case([start] * len(lengths), lengths, tokens=tokens, cache=cache, isa=isa))


@pytest.mark.parametrize("window", [1, 5, 64, 65, 1000])
def test_sliding_window(isa: str, cache: str, window: int) -> None:
    sizes = {"tokens": 100, "capacity": 201, "window": window}
    check(Case([0, 64, 128, 200, 5], [100, 64, 1, 1, 100], cache=cache, isa=isa, **sizes))


@pytest.mark.parametrize("norm", NORMS[1:])
@pytest.mark.parametrize(("heads", "groups", "head_dim"), [(3, 1, 64), (8, 2, 20), (4, 4, 128)])
def test_norms_of_queries_and_keys(isa: str, norm: str, heads: int, groups: int, head_dim: int) -> None:
    sizes = {"heads": heads, "groups": groups, "head_dim": head_dim, "norm": norm}
    check(Case([70, 3, 129, 0], [1, 21, 0, 1], tokens=21, cache="float32", isa=isa, **sizes))


@pytest.mark.parametrize("softcap", [0.5, 5.0, 50.0])
def test_soft_cap(isa: str, cache: str, softcap: float) -> None:
    sizes = {"heads": 8, "groups": 2, "head_dim": 20, "softcap": softcap, "gain": 3.0}
    check(Case([70, 3, 600, 0], [1, 21, 1, 130], tokens=130, capacity=700, cache=cache, isa=isa, **sizes))


@pytest.mark.parametrize("norm", ["none", "each"])
def test_queries_have_a_factor_by_position(isa: str, cache: str, norm: str) -> None:
    """The period is 64; rows decode and prefill before, at and after its multiples."""
    sizes = {"heads": 8, "groups": 2, "head_dim": 20, "query_beta": 0.5, "query_period": 64, "norm": norm}
    cache = cache if norm == "none" else "float32"
    check(Case([63, 64, 600, 0], [1, 1, 1, 130], tokens=130, capacity=700, cache=cache, isa=isa, **sizes))


@pytest.mark.parametrize(("beta", "period"), [(-1.0, 64), (float("nan"), 64), (0.5, 0), (0.5, -3)])
def test_a_factor_without_a_period_is_refused(beta: float, period: int) -> None:
    case = Case([0], [1], query_beta=beta, query_period=period)
    with pytest.raises(ValueError, match=r"query_beta .* and query_period"):
        run(case)


@pytest.mark.parametrize("position", [63, 64, 511, 512, 513, 1500, 4106])
def test_decode_joins_parts(isa: str, cache: str, position: int) -> None:
    check(Case([position, 4106], [1, 1], heads=3, groups=1, capacity=4107, cache=cache, isa=isa))
    check(Case([position], [1], heads=3, groups=1, capacity=4107, window=700, cache=cache, isa=isa))


def test_prefill_in_several_blocks(isa: str, cache: str) -> None:
    check(Case([301, 0], [300, 299], tokens=300, heads=6, groups=2, capacity=601, cache=cache, isa=isa))


def test_result_does_not_depend_on_threads(isa: str, cache: str) -> None:
    case = Case([700, 90, 0], [1, 77, 1], tokens=80, heads=6, groups=2, capacity=701, cache=cache, isa=isa)
    results = [run(replace(case, threads=threads))["out"] for threads in (1, 2, 5)]
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


def one_by_one(case: Case) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Runs the tokens of a case with one row in one call each, with the same scratch; returns outputs and arrays."""
    x = case.arrays()
    one = replace(case, tokens=1)
    out = np.empty((case.tokens, x["out"].shape[-1]), np.float32)
    _, scratch = bind(one, x)
    for i in range(case.tokens):
        step = dict(x, start=np.array([case.start[0] + i], np.int32), length=np.array([1], np.int32))
        step |= {"qkv": np.ascontiguousarray(x["qkv"][:, i : i + 1]), "out": out[i]}
        args, _ = bind(one, step, scratch=-(-scratch.ctypes.data // 64) * 64)
        call(args, case.isa)
    return out, x


def test_prefill_and_decode_agree(isa: str, cache: str) -> None:
    """One call for 40 tokens, or 40 calls: the caches are equal, the outputs nearly equal."""
    case = Case([9], [40], tokens=40, heads=6, groups=2, capacity=49, cache=cache, isa=isa)
    together, (out, single) = run(case), one_by_one(case)
    for name in ("k_cache", "v_cache"):
        assert together[name].tobytes() == single[name].tobytes()
    np.testing.assert_allclose(out, together["out"][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("heads", "groups", "head_dim"), [(9, 3, 64), (6, 1, 18)])
@pytest.mark.parametrize(
    ("start", "tokens", "window"), [(0, 8, 0), (61, 7, 0), (510, 8, 0), (700, 2, 0), (508, 8, 500)]
)
def test_few_tokens_have_the_bits_of_single_steps(
    isa: str, cache: str, start: int, tokens: int, window: int, heads: int, groups: int, head_dim: int
) -> None:
    """Positions cross the limits of parts (64, 512) and of the window."""
    sizes = {"heads": heads, "groups": groups, "head_dim": head_dim, "capacity": 710, "window": window}
    case = Case([start], [tokens], tokens=tokens, cache=cache, isa=isa, **sizes)
    together, (out, single) = run(case), one_by_one(case)
    assert together["out"].tobytes() == out.tobytes()
    assert together["k_cache"].tobytes() == single["k_cache"].tobytes()


def test_sharp_scores(isa: str, cache: str) -> None:
    """With scores of several hundred, one key has all the weight and nothing overflows."""
    case = Case([0, 66], [64, 1], tokens=64, cache=cache, isa=isa, gain=12.0)
    want, got = expected(case), run(case)
    np.testing.assert_allclose(got["out"], want["out"], rtol=0, atol=2e-2 if isa == "amx" else 2e-3)


@pytest.mark.parametrize("tokens", [1, 3])
def test_quantized_rows_at_the_edges(isa: str, tokens: int) -> None:
    """Rows of zeros, rows below float16's smallest scale, rows above its largest, and ties."""
    case = Case([0] * 5, [tokens] * 5, tokens=tokens, heads=2, groups=2, capacity=4, cache="int8", isa=isa)
    rows = [0.0, 1e-9, 1e30, 127.0, 3e-7]
    x, y = case.arrays(), case.arrays()
    for row, largest in enumerate(rows):
        pattern = np.resize(np.array([0.5, -1.5, 2.5, 127, -126.5], np.float32) / 127, x["qkv"].shape[1:])
        x["qkv"][row] = y["qkv"][row] = pattern * np.float32(largest)
    args, _scratch = bind(case, x)
    call(args, isa)
    inputs = [y[name] for name in ("qkv", "cos", "sin", "start", "length", "k_cache", "v_cache")]
    with np.errstate(over="ignore", invalid="ignore"):
        reference.fused_attention(*inputs, heads=2, scale=0.125, k_scale=y["k_scale"], v_scale=y["v_scale"])
    for name in ("k_cache", "v_cache", "k_scale", "v_scale"):
        assert x[name].tobytes() == y[name].tobytes(), name


@pytest.mark.parametrize(
    ("start", "length", "words"),
    [
        (-1, 1, "start -1"),
        (0, -1, "length -1"),
        (0, 9, "0..8 (tokens)"),
        (124, 8, "at most 130 (capacity)"),
        (131, 0, "start 131"),
        (2**31 - 1, 8, "start 2147483647"),
    ],
)
def test_refuses_positions_outside_the_cache(isa: str, start: int, length: int, words: str) -> None:
    """The message names the row, the value found and the limit, and nothing is written."""
    case = Case([0, start], [1, length], tokens=8, isa=isa)
    good = replace(case, start=[0, 0], length=[1, 1])
    x, before = good.arrays(), good.arrays()
    x["start"][:], x["length"][:] = case.start, case.length
    args, _scratch = bind(case, x)
    with pytest.raises(ValueError, match="row 1") as error:
        call(args, isa)
    assert words in str(error.value)
    for name in ("k_cache", "v_cache", "out"):
        assert x[name].tobytes() == before[name].tobytes()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("groups", 3, "4 query heads are not a multiple of 3"),
        ("head_dim", 63, "head_dim 63 is odd"),
        ("tokens", 0, "tokens 0"),
        ("positions", 129, "129 positions, the cache 130"),
        ("window", -1, "window -1"),
        ("cache", 3, "cache type 3"),
        ("threads", 0, "threads 0"),
    ],
)
def test_refuses_sizes_that_do_not_fit(field: str, value: int, words: str) -> None:
    case = Case([0], [1])
    x = case.arrays()
    args, _scratch = bind(case, x)
    setattr(args, field, value)
    with pytest.raises(ValueError) as error:
        call(args, "portable")
    assert words in str(error.value)
