"""Compares the CPU's Linear, Embedding and packer with their definitions, for every available ISA."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest

from edgellama.kernels import reference
from edgellama.kernels import weight_format as wf
from edgellama.kernels.activations import COARSE_STEPS, FINE_STEPS, FINE_TOKENS, round_activations
from edgellama.kernels.cpu.library import ISAS, available_isas, library
from support.linear_calls import EPILOGUES, TILE_ROWS, Linear, awkward_weights, c_pointer, guarded, packed_matrix


@pytest.fixture(params=available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=wf.FORMATS)
def fmt(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13])
def test_batch_rows(isa: str, fmt: str, rows: int) -> None:
    Linear(fmt, [1] * rows, 1, 96, 48).check(isa)


@pytest.mark.parametrize("length", [[0], [1], [31], [32], [33], [64], [64, 0, 1, 17]])
def test_lengths(isa: str, fmt: str, length: list[int]) -> None:
    Linear(fmt, length, 64, 64, 80).check(isa)


@pytest.mark.parametrize(("inner", "outer"), [(32, 16), (1, 1), (33, 17), (100, 40), (576, 64), (2080, 33)])
@pytest.mark.parametrize("tokens", [1, 40])
def test_sizes(isa: str, fmt: str, inner: int, outer: int, tokens: int) -> None:
    """Sizes that fill groups, panels and pairs of panels, or not; K that is computed in several parts."""
    Linear(fmt, [tokens], tokens, inner, outer).check(isa)


@pytest.mark.parametrize("epilogue", list(EPILOGUES))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 20])
def test_epilogues(isa: str, fmt: str, epilogue: str, bias: bool, tokens: int) -> None:
    Linear(fmt, [tokens, 0], tokens, 64, 72, epilogue=epilogue, bias=bias).check(isa)


def test_without_norm(isa: str, fmt: str) -> None:
    Linear(fmt, [3], 3, 64, 32, norm=False).check(isa)


@pytest.mark.parametrize("rows", [3, 20])
def test_last_token_only(isa: str, fmt: str, rows: int) -> None:
    Linear(fmt, [i % 6 for i in range(rows)], 5, 64, 96, last_only=True).check(isa)


@pytest.mark.parametrize("threads", [1, 3, 5])
def test_threads_give_the_same_bits(isa: str, threads: int) -> None:
    """A thread computes whole columns, so the number of threads changes nothing; 13 panels cannot be shared evenly."""
    for tokens in (1, 40):
        case = Linear("int8", [tokens], tokens, 320, 208)
        np.testing.assert_array_equal(case.run(isa, threads), case.run(isa, 2))


@pytest.mark.parametrize("quantized", wf.FORMATS[2:])
def test_a_row_has_the_same_bits_among_any_number(isa: str, quantized: str) -> None:
    """A different kernel multiplies many rows, in the same steps; only AMX rounds differently there."""
    case = Linear(quantized, [1] * 50, 1, 2112, 72, bias=True)
    want, x = case.run(isa), case.x
    for rows in (1, 2, 7, 8, 19, 20, 21, 27):
        if isa == "amx" and rows < TILE_ROWS:
            continue
        case.length, case.x = np.ones(rows, np.int32), np.ascontiguousarray(x[50 - rows :])
        np.testing.assert_array_equal(case.run(isa), want[50 - rows :])


@pytest.mark.parametrize("quantized", wf.FORMATS[2:])
@pytest.mark.parametrize(("inner", "outer"), [(20, 16), (33, 17), (100, 72), (576, 48), (2080, 33)])
def test_rows_of_many_tokens_have_coarse_activations(isa: str, quantized: str, inner: int, outer: int) -> None:
    """Without a norm the inputs are those of the definition bit for bit, and so are the rounded ones."""
    for tokens in (FINE_TOKENS, FINE_TOKENS + 1, 40):
        case = Linear(quantized, [tokens], tokens, inner, outer, norm=False)
        case.x[0, 3] = 0
        case.x[0, 4, 1:] = 0
        case.x[0, 5] = np.sign(case.x[0, 5])
        case.check(isa)


def test_fine_groups_are_those_with_outliers() -> None:
    x = np.random.default_rng(4).uniform(-1, 1, (3, 18 * 32)).astype(np.float32)
    x[0, 40], x[0, 170] = 90, 6
    x[2, 7] = np.inf
    error = np.abs(round_activations(x) - x).reshape(3, 18, 32).max(axis=-1)
    coarse, fine = 0.5 / COARSE_STEPS, 0.5 / FINE_STEPS
    assert 90 * fine * 0.9 < error[0, 1] < 90 * fine * 1.01  # group 1 is fine, group 5 is not: 6 is below its limit
    assert 6 * coarse * 0.8 < error[0, 5] < 6 * coarse * 1.01
    assert (error[1] > 0.8 * coarse).all() and (error[1] < 1.01 * coarse).all()
    assert np.isnan(error[2]).all()
    assert not np.isnan(error[:2]).any()


def test_a_row_has_the_same_bits_beside_rows_of_one_token(isa: str) -> None:
    """The number of tokens of a row chooses its arithmetic, and never the other rows of the call."""
    length = [40, 1, 17, 0, 16, 3]
    case = Linear("int8", length, 40, 2112, 72, bias=True)
    want, x = case.run(isa), case.x
    for row, tokens in enumerate(length):
        if isa == "amx" and tokens < TILE_ROWS:
            continue
        case.length, case.x = np.array([tokens], np.int32), x[row : row + 1].copy()
        np.testing.assert_array_equal(case.run(isa)[0, :tokens], want[row, :tokens])


def test_logits_never_have_coarse_activations() -> None:
    """edgellama_head computes many rows as it computes one."""
    rng = np.random.default_rng(2)
    hidden, gamma = rng.standard_normal((40, 96), dtype=np.float32), np.ones(96, np.float32)
    packed = guarded(packed_matrix(rng, 48, 96, "int8"))
    weight = wf.unpack(packed, "int8", 48, 96)

    def head(count: int) -> np.ndarray:
        logits = np.empty((count, 48), np.float32)
        code = library().edgellama_head(
            2, wf.FORMATS.index("int8"), count, 96, 48, ctypes.c_float(1e-5), ctypes.c_float(0), c_pointer(hidden),
            c_pointer(packed), c_pointer(gamma), c_pointer(logits),
        )  # fmt: skip
        assert code == 0
        return logits

    want = reference.linear(hidden[None], weight, np.array([40]), gamma=gamma, eps=1e-5)[0]
    tolerance = 2e-2 if available_isas()[-1] == "amx" else 2e-4
    assert np.abs(head(40) - want).max() < tolerance * np.abs(want).max()
    np.testing.assert_allclose(head(1), want[:1], atol=2e-4 * np.abs(want).max())


def test_zero_and_huge_activations(isa: str) -> None:
    case = Linear("int8", [4], 4, 64, 32, norm=False)
    case.x[0, 0] = 0
    case.x[0, 1, 32:] = 0
    case.x[0, 2] *= 1e30
    case.x[0, 3] *= 1e-26
    case.check(isa)


def test_embedding(isa: str, fmt: str) -> None:
    rng = np.random.default_rng(3)
    ids, length = rng.integers(0, 50, (3, 9), dtype=np.int32), np.array([9, 0, 4], np.int32)
    ids[0, :2] = 0, 49
    for width in (33, 64, 100):
        packed = guarded(packed_matrix(rng, 50, width, fmt))
        got = np.full((3, 9, width), np.nan, np.float32)
        code = library().edgellama_embedding(
            ISAS.index(isa), 2, wf.FORMATS.index(fmt), 3, 9, 50, width, c_pointer(ids), c_pointer(packed),
            c_pointer(length), c_pointer(got),
        )  # fmt: skip
        assert code == 0
        np.testing.assert_array_equal(got, reference.embedding(ids, wf.unpack(packed, fmt, 50, width), length))


@pytest.mark.parametrize("fmt", ["f32", "int8"])
def test_tables_of_more_than_two_gigabytes(isa: str, fmt: str) -> None:
    """The table is zero, which needs no memory until it is written, except for a last panel beyond 2^31 bytes."""
    inner, last = 4096, packed_matrix(np.random.default_rng(0), 16, 4096, fmt)
    panels = (1 << 31) // len(last) + 3
    table = np.zeros((panels, len(last)), np.uint8)
    table[-1] = last
    outer, length = 16 * panels, np.array([1], np.int32)
    wanted = wf.unpack(last, fmt, 16, inner)
    ids, found = np.array([[outer - 3]], np.int32), np.empty((1, 1, inner), np.float32)
    code = library().edgellama_embedding(
        ISAS.index(isa), 2, wf.FORMATS.index(fmt), 1, 1, outer, inner, c_pointer(ids), c_pointer(table),
        c_pointer(length), c_pointer(found),
    )  # fmt: skip
    assert code == 0
    np.testing.assert_array_equal(found[0, 0], wanted[-3])

    x, y = np.random.default_rng(1).standard_normal((1, 1, inner), np.float32), np.empty((1, 1, outer), np.float32)
    code = library().edgellama_linear(
        ISAS.index(isa), 2, wf.FORMATS.index(fmt), 0, 1, 1, inner, outer, 0, ctypes.c_float(1e-5), c_pointer(x),
        c_pointer(table), None, None, None, c_pointer(length), c_pointer(y),
    )  # fmt: skip
    assert code == 0
    assert not y[0, 0, :-16].any()
    np.testing.assert_allclose(y[0, 0, -16:], wanted @ x[0, 0], atol=2e-4 * np.abs(wanted @ x[0, 0]).max())


@pytest.mark.parametrize("fmt", ["f32", "bf16", "int8", "int4"])
def test_packer_is_its_definition_bit_for_bit(isa: str, fmt: str) -> None:
    for w in (awkward_weights(), awkward_weights()[:32, :96].copy()):
        n, k = w.shape
        got = np.full(wf.packed_bytes(fmt, n, k), 0xAA, np.uint8)
        code = library().edgellama_pack(
            ISAS.index(isa), 2, wf.FORMATS.index(fmt), ctypes.c_long(n), ctypes.c_long(k), c_pointer(w), None, None,
            None, c_pointer(got),
        )  # fmt: skip
        assert code == 0
        np.testing.assert_array_equal(got, wf.pack(w, fmt))


@pytest.mark.parametrize("fmt", ["int8", "int4", "q4_0", "w4g32", "w4g64", "w4g128"])
def test_packer_lays_out_quantized_weights(fmt: str) -> None:
    from edgellama.kernels.cpu.packing import pack_quantized

    rng = np.random.default_rng(6)
    for k in (96, 256, 288):
        count = wf.scale_count(fmt, k)
        scales, q = rng.integers(0, 2**16, (48, count), dtype=np.uint16), rng.integers(0, 16, (48, k), dtype=np.uint8)
        zeros = rng.integers(0, 65, (48, count), dtype=np.int8) if fmt in wf.W4_GROUPS else None
        packed = wf.pack_groups(fmt, scales, q, zeros)
        np.testing.assert_array_equal(pack_quantized(fmt, scales, q, 2, zeros), packed)
        for got, want in zip(wf.unpack_groups(packed, fmt, k), (scales, q, zeros), strict=True):
            np.testing.assert_array_equal(got, want)


def test_formats_round_as_little_as_they_can() -> None:
    """Independent bounds: half a step of int8; int4 better than its scale's plain rounding; bf16 8 bits."""
    w = np.random.default_rng(8).standard_normal((64, 256)).astype(np.float32)
    groups = w.reshape(64, 8, 32)
    error = {fmt: np.abs(wf.unpack(wf.pack(w, fmt), fmt, 64, 256) - w).reshape(64, 8, 32) for fmt in wf.FORMATS[:4]}
    assert not error["f32"].any()
    assert (error["bf16"] <= np.abs(groups) * 2.0**-8).all()
    assert (error["int8"] <= np.abs(groups).max(axis=2, keepdims=True) / 127 * 0.51).all()
    step = (groups.max(axis=2, keepdims=True) - groups.min(axis=2, keepdims=True)) / 15
    plain = np.abs(np.rint(groups / step) * step - groups)
    assert (error["int4"] ** 2).sum() < 0.95 * (plain**2).sum()


def test_two_threads_of_python_share_the_pool() -> None:
    """Two threads run models in turn: every call gives the same result as alone."""
    case = Linear("int8", [1], 1, 320, 208)
    want = case.run("portable")
    wrong: list[int] = []

    def work(threads: int) -> None:
        wrong.extend(i for i in range(200) if not np.array_equal(case.run("portable", threads), want))

    workers = [threading.Thread(target=work, args=(n,)) for n in (2, 3, 4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
