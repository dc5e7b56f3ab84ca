"""Compares low-rank additions to the CPU's Linear with a formula in numpy, and checks the tables of adapters."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellama.kernels import weight_format as wf
from edgellama.kernels.activations import FINE_TOKENS, round_activations
from edgellama.kernels.cpu.adapters import AdapterTable, Matrices
from edgellama.kernels.cpu.library import ISAS, available_isas, library
from support.linear_calls import EPILOGUES, GATED, TILE_ROWS, Linear, c_pointer


@pytest.fixture(params=available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


class Adapted(Linear):
    """A call of which some rows have an addition. The ranks of the two halves of the columns differ, as of q and k."""

    def __init__(self, *sizes: Any, rank: int = 5, adapted: list[int], **options: Any) -> None:
        super().__init__(*sizes, **options)
        rng = np.random.default_rng(7)
        inner = self.x.shape[2]
        self.adapted = np.array(adapted, np.int32)
        self.a = (rng.standard_normal((rank, inner)) / inner**0.5).astype(np.float32)
        self.b = rng.standard_normal((self.columns, rank), dtype=np.float32)
        middle = self.columns // 2
        self.b[:middle, rank // 2 :] = 0
        self.b[middle:, : rank // 2] = 0
        self.b[:16] = 0  # a panel without any rank

    def run(self, isa: str, threads: int = 2) -> NDArray[np.float32]:
        rows, tokens, inner = self.x.shape
        y = np.full((rows, tokens, self.outer), np.nan, np.float32)
        code = library().edgellama_linear_low_rank(
            ISAS.index(isa), threads, wf.FORMATS.index(self.fmt), EPILOGUES[self.epilogue], rows, tokens, inner,
            self.outer, ctypes.c_float(1e-5), c_pointer(self.x), c_pointer(self.packed), c_pointer(self.gamma),
            c_pointer(self.bias), c_pointer(self.residual), c_pointer(self.length), c_pointer(y), len(self.a),
            c_pointer(self.a), c_pointer(self.b), c_pointer(self.adapted),
        )  # fmt: skip
        assert code == 0
        return y

    def expected(self, isa: str) -> NDArray[np.float32]:
        """Computes in float64 with whole matrices: W + B A for the rows that have the addition."""
        weight = wf.unpack(self.packed, self.fmt, self.columns, self.x.shape[2]).astype(np.float64)
        out = np.full((*self.x.shape[:2], self.outer), np.nan, np.float32)
        for row, (x, count) in enumerate(zip(self.x.astype(np.float64), self.length, strict=True)):
            if self.gamma is not None:
                x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-5) * self.gamma
            rounded = round_activations(x) if self.coarse(isa) and count > FINE_TOKENS else x
            y = rounded @ weight.T + self.adapted[row] * (x @ (self.b.astype(np.float64) @ self.a).T)
            y = y if self.bias is None else y + self.bias
            if self.epilogue in GATED:
                panels = y.reshape(len(y), -1, 2, wf.PANEL)
                gate, up = (panels[:, :, i].reshape(len(y), -1) for i in range(2))
                y = gate / (1 + np.exp(-gate)) * up
            out[row, :count] = y[:count, : self.outer]
        return out if self.residual is None else out + self.residual


@pytest.mark.parametrize("fmt", wf.FORMATS)
@pytest.mark.parametrize("length", [[1], [1, 1, 0, 1], [3, 40], [5] * 9])
def test_each_row_has_its_own_addition(isa: str, fmt: str, length: list[int]) -> None:
    adapted = [index % 2 for index in range(1, len(length) + 1)]
    Adapted(fmt, length, max(length), 100, 72, adapted=adapted).check(isa)


@pytest.mark.parametrize("epilogue", ["none", "residual_add", "swiglu"])
@pytest.mark.parametrize("tokens", [1, 24])
def test_it_is_added_before_bias_and_epilogue(isa: str, epilogue: str, tokens: int) -> None:
    case = Adapted("int8", [tokens] * 2, tokens, 64, 88, adapted=[1, 0], epilogue=epilogue, bias=True)
    case.check(isa)
    case.gamma = None
    case.check(isa)


@pytest.mark.parametrize(("inner", "rank"), [(1, 1), (33, 3), (2080, 8), (64, 130)])
@pytest.mark.parametrize("tokens", [1, 26])
def test_sizes(isa: str, inner: int, rank: int, tokens: int) -> None:
    Adapted("int4", [tokens], tokens, inner, 33, rank=rank, adapted=[1]).check(isa)


@pytest.mark.parametrize("tokens", [1, 26])
def test_rows_without_an_addition_keep_their_bits(isa: str, tokens: int) -> None:
    case = Adapted("int8", [tokens] * 3, tokens, 96, 48, adapted=[0, 1, 0])
    plain = Linear.run(case, isa)
    found = case.run(isa)
    np.testing.assert_array_equal(found[[0, 2]], plain[[0, 2]])
    assert np.abs(found[1] - plain[1]).max() > 0.1


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_threads_give_the_same_bits(isa: str, tokens: int) -> None:
    case = Adapted("int8", [tokens] * 2, tokens, 320, 208, rank=9, adapted=[1, 1])
    one = case.run(isa, 1)
    for threads in (2, 5):
        np.testing.assert_array_equal(case.run(isa, threads), one)


def test_a_row_has_the_same_bits_among_any_number(isa: str) -> None:
    """Many rows share the loads of A and B; rows of another adapter, or of none, interrupt them."""
    case = Adapted("int8", [1] * 50, 1, 333, 72, rank=7, adapted=[int(i % 7 != 3) for i in range(50)])
    want, x, adapted = case.run(isa), case.x, case.adapted
    for rows in (1, 5, 16, 21, 27):
        if isa == "amx" and rows < TILE_ROWS:
            continue
        case.length, case.x = np.ones(rows, np.int32), np.ascontiguousarray(x[50 - rows :])
        case.adapted = np.ascontiguousarray(adapted[50 - rows :])
        for threads in (1, 3):
            np.testing.assert_array_equal(case.run(isa, threads), want[50 - rows :])


def test_wrong_arguments_are_refused() -> None:
    caches = [np.zeros((2, 1, 4, 8), np.float32) for _ in range(3)]
    table = AdapterTable(caches)
    assert table.rows == 2
    with pytest.raises(ValueError, match="already"):
        AdapterTable([np.zeros((2, 1, 4, 8), np.float32), caches[1]])
    a, b = np.ones((2, 8), np.float32), np.ones((20, 2), np.float32)
    table.add(4, Matrices(0, "qkv", a, b))
    for number, layer in ((4, 0), (0, 1), (-1, 1), (4, 3), (4, -1)):
        with pytest.raises(ValueError, match="does not fit"):
            table.add(number, Matrices(layer, "qkv", a, b))
    with pytest.raises(ValueError, match="columns"):
        table.add(4, Matrices(1, "o", a, b[:, :1]))
    table.choose(np.array([4, 0], np.int32))
    for wrong in ([5, 0], [0, -1], [4]):
        with pytest.raises(ValueError, match="not loaded"):
            table.choose(np.array(wrong, np.int32))
    table.remove(4)
    with pytest.raises(ValueError, match="not loaded"):
        table.choose(np.array([4, 0], np.int32))


def test_a_freed_table_frees_its_caches() -> None:
    cache = np.zeros((1, 1, 4, 8), np.float32)
    for _ in range(2):  # the second table would be refused if the first one were still there
        table = AdapterTable([cache])
        del table
