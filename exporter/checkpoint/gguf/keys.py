"""The metadata of a GGUF file that belongs to its architecture, with checks of types and of unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellama.errors import UserError, shown

from ..finite import check_finite
from .file import GGUFFile, GGUFTensor

# Keys without effect, and keys that change the mathematics unless they have the listed value.
_NEUTRAL = {"tensor_data_layout", "rope.scaling.finetuned"}
_NEUTRAL_VALUES = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "pooling_type": 0,
    "use_parallel_residual": False,
    "rope.scaling.yarn_ext_factor": 1.0,
}


class Keys:
    """The architecture's metadata. Each key is taken once, so that `check_rest` can report the unknown keys."""

    def __init__(self, file: GGUFFile, kind: str) -> None:
        self.path, self.prefix, self._file = file.path, f"{kind}.", file
        fields = file.fields.items()
        self.left = {key[len(self.prefix) :]: value for key, value in fields if key.startswith(self.prefix)}

    def take(self, key: str, kind: type) -> Any:
        """Remove a key and return its value, None if the key is absent. Raises UserError for another type."""
        value = self.left.pop(key, None)
        if isinstance(value, np.ndarray):
            if len(value) == 0 or np.any(value != value[0]):
                raise UserError(
                    f"{self.path}: {self.prefix}{key} differs from layer to layer, which is not supported. "
                    "Choose another model"
                )
            value = value[0].item()
        if value is not None and type(value) is not kind:
            raise UserError(
                f"{self.path}: {self.prefix}{key} = {shown(value)} must be of type {kind.__name__}. "
                "Convert the model again"
            )
        if isinstance(value, float):
            value = float(str(np.float32(value)))  # the file stores float32: 1e-05, not 9.999999747378752e-06
        return value

    @property
    def tensors(self) -> Mapping[str, GGUFTensor]:
        """The table of tensors."""
        return self._file.tensors

    def vector(self, name: str) -> list[float]:
        """Return a tensor of one axis. Raises UserError for NaN, infinity or more axes."""
        values = self._file.tensor(name)
        if values.ndim != 1:
            raise UserError(f"{self.path}: {name} has {values.ndim} axes; needed: 1. Convert the model again")
        check_finite(self.path, name, 0, values)
        return [float(str(value)) for value in values]

    def array(self, key: str) -> list[Any] | None:
        """Remove a key with one value for each layer and return the values; None if the key is absent."""
        value = self.left.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, (list, np.ndarray)):
            raise UserError(
                f"{self.path}: {self.prefix}{key} = {shown(value)} must have one value for each layer. "
                "Convert the model again"
            )
        return list(value)

    def need(self, key: str, kind: type) -> Any:
        """As `take`, but raises UserError if the key is absent."""
        value = self.take(key, kind)
        if value is None:
            raise UserError(f"{self.path} lacks the metadata key {self.prefix}{key}; convert the model again")
        return value

    def check_rest(self) -> None:
        """Raise UserError if keys remain that are neither neutral nor have a neutral value."""
        unknown = {
            key: value
            for key, value in self.left.items()
            if key not in _NEUTRAL and not (key in _NEUTRAL_VALUES and _is_neutral(value, _NEUTRAL_VALUES[key]))
        }
        if unknown:
            listed = ", ".join(
                f"{shown(self.prefix + key)[1:-1]} = {shown(value)}" for key, value in list(unknown.items())[:5]
            )
            raise UserError(
                f"{self.path}: {listed} is not supported and may change the mathematics. Choose a file without it"
            )


def _is_neutral(value: Any, neutral: object) -> bool:
    return not isinstance(value, np.ndarray) and value == neutral
