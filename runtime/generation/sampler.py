"""The sampler: takes the likeliest token, or draws one under temperature, top_k, top_p, min_p and typical_p.

Settings that are seldom used are in warpers.py. The meaning and the order are those of transformers' logits warpers.
Two cases that transformers leaves open are fixed: of equal scores at the limit of top_p the later ids stay, and the
likeliest token is the first of the highest scores.
kernels/cpu/sampling/sampling.cpp does the work, on the host, on every target.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, ClassVar

import numpy as np

from ..backend.cpu_kernels import kernel_library
from ..errors import UserError
from .config import GenerationConfig
from .warpers import apply_cutoffs, apply_top_h

NOT_NUMBERS, NOTHING_LEFT = -1, -2  # sampling.cpp returns these instead of a token
FLOAT32 = np.dtype(np.float32)
COLDEST, HOTTEST = 1e-30, 1e30  # temperatures are clamped to these, so that their inverses fit float32


class NotNumbersError(RuntimeError):
    """Scores are NaN, or a draw is to be made from scores that include +inf."""

    def __init__(self) -> None:
        super().__init__("scores are not numbers")


class _Settings(ctypes.Structure):
    """struct Sampling of kernels/cpu/sampling/sampling.h."""

    _fields_: ClassVar = [
        *((name, ctypes.c_int32) for name in ("isa", "top_k", "keep")),
        *((name, ctypes.c_float) for name in ("temperature", "top_p", "min_p", "typical_p")),
    ]


class Sampler:
    """Applies the sampling settings of one call to rows of scores: float32, C-contiguous, [rows, V] or [V]."""

    def __init__(self, config: GenerationConfig | None = None, keep: int = 1, isa: str | None = None) -> None:
        """Prepare the settings.

        Args:
            config: how to draw; None leaves the scores as they are.
            keep: the least number of tokens that top_k, top_p, min_p and typical_p leave.
            isa: the kernels' instruction set; None takes the best one.
        """
        self._likeliest, self._draw, self._warp, self._log_normaliser = _functions()
        from edgellama.kernels.cpu.library import ISAS  # imported late, so that `import runtime` stays light

        config = config or GenerationConfig(top_k=0)
        self._rare = config if config.top_h is not None or config.epsilon_cutoff or config.eta_cutoff else None
        self._keep = keep
        self._unchanged = Sampler(isa=isa) if self._rare is not None else self
        settings = _Settings(
            isa=-1 if isa is None else ISAS.index(isa),
            top_k=min(config.top_k, 2**31 - 1),
            keep=keep,
            temperature=min(max(config.temperature, COLDEST), HOTTEST),
            top_p=config.top_p,
            min_p=-1.0 if config.min_p is None else config.min_p,
            typical_p=config.typical_p,
        )
        self._settings = settings
        self._settings_pointer = ctypes.byref(settings)

    def likeliest(self, scores: np.ndarray, row: int = 0) -> int:
        """Return the first token of the highest score in `row`; raises as `draw` does."""
        token = self._likeliest(self._settings_pointer, float_pointer(scores), row, scores.shape[-1])
        return token if token >= 0 else _refuse(token)

    def draw(self, scores: np.ndarray, row: int, uniform: float) -> int:
        """Draw a token from the softmax of the scores that the settings leave in `row`.

        Args:
            scores: float32 [rows, V].
            row: which row.
            uniform: a number in [0, 1) that determines the token.

        Raises:
            UserError: every score is -inf.
            NotNumbersError: a score is not a number.
        """
        if self._rare is not None:
            return self._unchanged.draw(self.warp(scores.reshape(-1, scores.shape[-1])[row]), 0, uniform)
        token = self._draw(self._settings_pointer, float_pointer(scores), row, scores.shape[-1], uniform)
        return token if token >= 0 else _refuse(token)

    def warp(self, scores: np.ndarray) -> np.ndarray:
        """Return scores [V] as transformers' warpers do: divided by the temperature, -inf for excluded tokens."""
        rare = self._rare
        if rare is not None and rare.top_h is not None:
            _refuse(0 if np.isfinite(scores.max()) else NOTHING_LEFT if scores.max() == -np.inf else NOT_NUMBERS)
            scores = apply_top_h(scores, rare.temperature, rare.top_h)
        out = np.empty(scores.size, np.float32)
        _refuse(self._warp(self._settings_pointer, float_pointer(scores), scores.size, float_pointer(out)))
        return out if rare is None else apply_cutoffs(out, rare.epsilon_cutoff, rare.eta_cutoff, self._keep)

    def logsumexp(self, scores: np.ndarray, row: int = 0) -> float:
        """Return log(sum(exp(score / temperature))) of `row`; a score minus this is its log-probability."""
        out = ctypes.c_double()
        _refuse(self._log_normaliser(self._settings_pointer, float_pointer(scores), row, scores.shape[-1], _byref(out)))
        return out.value


@cache
def _functions() -> tuple[Any, Any, Any, Any]:
    """Return likeliest, draw, warp and log_normaliser of sampling.cpp."""
    library = kernel_library()
    pointer, whole = ctypes.c_void_p, ctypes.c_long
    takes = {
        "likeliest": [pointer, pointer, whole, whole],
        "draw": [pointer, pointer, whole, whole, ctypes.c_double],
        "warp": [pointer, pointer, whole, pointer],
        "log_normaliser": [pointer, pointer, whole, whole, pointer],
    }
    for name, types in takes.items():
        getattr(library, f"edgellama_{name}").argtypes = types
    likeliest, draw, warp, log_normaliser = (getattr(library, f"edgellama_{name}") for name in takes)
    return likeliest, draw, warp, log_normaliser


_byref, _from_buffer = ctypes.byref, ctypes.c_float.from_buffer


def float_pointer(scores: Any) -> ctypes._CArgObject:
    """Return a pointer to the first element, the cheapest way; the array must be C-contiguous and writable.

    Raises:
        TypeError: the array is not float32.
    """
    if scores.dtype is not FLOAT32 and scores.dtype != FLOAT32:
        raise TypeError(f"scores are {scores.dtype}; needed: float32")
    return _byref(_from_buffer(scores))


def _refuse(code: int) -> int:
    if code == 0:
        return 0
    if code == NOTHING_LEFT:
        raise UserError("the settings rule out every token of the vocabulary. Ban less")
    if code == NOT_NUMBERS:
        raise NotNumbersError
    raise UserError("the CPU kernels have no variant of this instruction set for this machine")
