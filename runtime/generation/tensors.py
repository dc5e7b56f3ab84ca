"""Arrays and torch tensors: results and callables get torch tensors if the prompt was one. torch is never imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Convert = Callable[[np.ndarray], Any]


def kind_of_result(given: Any) -> Convert:
    """Return the function that turns an array into what `given` is: a torch tensor if it is one, else the array.

    The tensor shares the array's memory.
    """
    torch = sys.modules.get("torch")
    return torch.from_numpy if torch is not None and isinstance(given, torch.Tensor) else lambda array: array


def as_array(given: Any) -> np.ndarray:
    """Return an array, a tensor of the host or a list as an array."""
    return given.detach().numpy() if hasattr(given, "detach") else np.asarray(given)
