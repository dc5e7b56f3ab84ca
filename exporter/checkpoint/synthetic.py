"""A checkpoint of seeded random weights: any network's size, memory and speed without a download.

Every weight is a stream of normal numbers cut into granules; a granule's numbers follow from the seed, the weight's
name and the granule's place alone. So any rows can be made by themselves, and the weights are the same whatever is
asked for first, in blocks of whatever size, on however many threads. (numpy may change a distribution's stream between
releases; the manifest names the release.)
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..network.config import LlamaConfig
from .base import Checkpoint, RawBlocks
from .tokenizer_files import folder_tokenizer_files, generation_config, to_json

GRANULE = 1 << 16  # numbers


class SyntheticCheckpoint(Checkpoint):
    """Weights that keep activations of any depth and width near one, as training does.

    Norm weights are 1 +- 0.1, biases +- 0.02; a matrix has the standard deviation 1 / sqrt(columns), those that write
    to the residual stream (o_proj, down_proj) 1 / sqrt(2 * layers) of that, so that it does not grow with depth.
    """

    def __init__(self, config: LlamaConfig, seed: int, folder: Path | None = None) -> None:
        """folder: where a tokenizer may be; without one the artifact has none."""
        self.config, self.seed, self.path = config, seed, folder or Path("synthetic")
        self._folder = folder

    def dtype(self, name: str) -> str:
        return "F32"

    def rows(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        total, *rest = self.shape(name)
        count, width = min(count, total - first), math.prod(rest)
        mean, deviation = self._distribution(name)
        out = np.empty((count, width), np.float32)
        step = _power_of_two(GRANULE // width)  # rows of a granule
        for granule in range(first // step, -(-(first + count) // step)):
            begin, end = granule * step, min((granule + 1) * step, first + count)
            generator = self._generator(name, granule)
            if begin >= first:
                generator.standard_normal(dtype=np.float32, out=out[begin - first : end - first])
            else:
                out[: end - first] = generator.standard_normal((end - begin, width), np.float32)[first - begin :]
        out *= np.float32(deviation)
        if mean:
            out += np.float32(mean)
        return out.reshape(count, *rest)

    def raw(self, name: str, first: int = 0, count: int | None = None) -> RawBlocks | None:
        return None

    @property
    def revision(self) -> str:
        return f"synthetic-seed-{self.seed}"

    def tokenizer_files(self) -> dict[str, bytes]:
        if self._folder is not None and (self._folder / "tokenizer.json").exists():
            return folder_tokenizer_files(self._folder, self.config)
        return {"generation_config.json": to_json(self.generation_config())}

    def generation_config(self) -> dict[str, Any]:
        return generation_config(self.config)

    def _distribution(self, name: str) -> tuple[float, float]:
        """(mean, standard deviation)"""
        if name.endswith("norm.weight"):
            return 1.0, 0.1
        if name.endswith(".bias"):
            return 0.0, 0.02
        deviation = self.shape(name)[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation *= (2 * self.config.num_hidden_layers) ** -0.5
        return 0.0, deviation

    def _generator(self, name: str, granule: int) -> np.random.Generator:
        """Philox (Salmon et al., SC 2011) counts: another key or another upper counter word is another stream."""
        key = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"), counter=granule << 128))


def _power_of_two(most: int) -> int:
    return 1 << max(0, most.bit_length() - 1)
