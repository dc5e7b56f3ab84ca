"""Arguments that Hugging Face users pass: where a model goes, in which type, and callables or lists of them."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, NoReturn

import numpy as np

from .artifact.manifest import Manifest
from .errors import UserError
from .generation.settings.others import REMEDIES
from .generation.tensors import Convert, as_array

PLACEMENT = ("device", "device_map", "dtype", "torch_dtype")
WEIGHTS_OF_DTYPE = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # Hugging Face's name -> weights format


def check_placement(caller: str, given: Mapping[str, Any], manifest: Manifest) -> None:
    """Check device, device_map, dtype and torch_dtype, all of which the export has fixed.

    None, "auto", and what the artifact was exported for are accepted.

    Args:
        caller: name of the function, for messages.
        given: the keywords.
        manifest: gives the target and the weights format.

    Raises:
        UserError: another device or type.
        TypeError: another keyword.
    """
    for name, value in given.items():
        if name not in PLACEMENT:
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}")
        if value is None or value == "auto":
            continue
        wanted = str(value).removeprefix("torch.")
        if name.startswith("device"):
            fits = wanted in ("cpu", "-1") and not manifest.target.startswith("ascend")
            remedy = "Leave it out (device_id says which NPU, of several)"
        else:
            fits = WEIGHTS_OF_DTYPE.get(wanted, wanted) == manifest.weights_format
            remedy = f"Leave it out, or export with WEIGHTS={WEIGHTS_OF_DTYPE.get(wanted, '...')}"
        if not fits:
            exported = f"target {manifest.target}, weights {manifest.weights_format}"
            raise UserError(f"{name} is {value!r}; the artifact was exported for {exported}. {remedy}")


def as_callables(name: str, given: Any, convert: Convert) -> list[Any]:
    """Return logits_processor or stopping_criteria as a list of callables that take and return arrays.

    Args:
        name: of the argument, for messages.
        given: a callable, a list of them, or None. Grammars take arrays whatever the prompt is.
        convert: makes an array what the prompt is.

    Raises:
        UserError: anything else.
    """
    several = isinstance(given, (list, tuple))
    callables = list(given) if several else [] if given is None else [given]
    for one in callables:
        if not callable(one):
            raise UserError(f"{name} holds {one!r}; needed: a callable or a list of them")
    return [one if getattr(one, "takes_arrays", False) else _with_arrays(one, convert) for one in callables]


def _with_arrays(given: Callable[..., Any], convert: Convert) -> Callable[..., Any]:
    def call(input_ids: np.ndarray, scores: Any) -> Any:
        if scores is not None:  # a criterion gets a tuple, of one array a step
            scores = tuple(map(convert, scores)) if isinstance(scores, tuple) else convert(scores)
        return as_array(given(convert(input_ids), scores))

    return call


def time_limit(seconds: float) -> Callable[..., bool]:
    """Return the stopping criterion of max_time, which begins now."""
    began = time.monotonic()
    return lambda input_ids, scores: time.monotonic() - began > seconds


def refuse_argument(caller: str, name: str) -> NoReturn:
    """Raise the error for an argument of transformers that does not work here: UserError, or TypeError if unknown."""
    if name in REMEDIES:
        raise UserError(f"{caller}: {name} does not work here. {REMEDIES[name]}")
    raise TypeError(f"{caller} has no keyword {name!r}")


def set_seed(seed: int) -> None:
    """Seed the generations that are given no `seed`, and Python's and numpy's random numbers, as transformers does.

    The same calls after the same seed give the same tokens. They are not those of torch's random numbers.

    Args:
        seed: 0 to 2 ** 32 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 1 << 32:
        raise UserError(f"seed is {seed!r}; needed: a whole number from 0 to {(1 << 32) - 1}")
    random.seed(int(seed))
    np.random.seed(int(seed))
    _SEEDS[:] = [random.Random(int(seed))]


def next_seed() -> int:
    """Return the seed of a call that gives none: of the series that set_seed begins, or one that nobody can predict."""
    return _SEEDS[0].getrandbits(64) if _SEEDS else secrets.randbits(64)


_SEEDS: list[random.Random] = []  # of set_seed, if it was called
