"""A weights file with two layers as the CPU kernels read them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgellama.artifact.manifest import TensorSpec
from edgellama.artifact.safetensors import ALIGNMENT, TensorFile
from edgellama.backend.layer_tensors import layer_tensors
from edgellama.exporter.writing.weights_file import write_weights

CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_size": 32, "intermediate_size": 48}


class LayeredWeights(NamedTuple):
    """The file, the inputs of its graphs, and the tensors of each input that is a layer."""

    path: Path
    inputs: list[TensorSpec]
    layers: dict[str, list[TensorSpec]]

    def checked(self, path: Path) -> TensorFile:
        """Returns another file, which passed the check against the inputs and layers of this one."""
        weights = TensorFile(path)
        weights.check(self.inputs, self.layers, ALIGNMENT)
        return weights

    def differing(self, weights: TensorFile) -> str | None:
        """Returns the first input whose bytes differ from those of this file."""
        good = TensorFile(self.path)
        differ = (x.name for x in self.inputs if not np.array_equal(weights.array(x.name), good.array(x.name)))
        return next(differ, None)


def layered_weights(folder: Path) -> LayeredWeights:
    """Writes the file `w` into `folder`; every tensor has its own value."""
    layers = {f"model.layers.{i}.*": layer_tensors(CONFIG, "int8", f"model.layers.{i}.", ()) for i in range(2)}
    norm = TensorSpec("model.norm.weight", "float32", (32,))
    stored = [tensor for tensors in layers.values() for tensor in tensors] + [norm]
    value = {x.name: np.full(x.shape, i, x.dtype) for i, x in enumerate(stored)}
    write_weights(folder, "w", stored, lambda name: [lambda: value[name]])
    whole = TensorFile(folder / "w")
    inputs = [TensorSpec(name, "uint8", whole.array(name).shape) for name in layers]
    made = LayeredWeights(folder / "w", [*inputs, norm], layers)
    made.checked(made.path)
    return made


def with_header(header: bytes, data: bytes) -> bytes:
    """Returns a safetensors file of this header, padded with spaces so that the tensors stay aligned."""
    padded = header + b" " * (-(8 + len(header)) % 64)
    return len(padded).to_bytes(8, "little") + padded + data
