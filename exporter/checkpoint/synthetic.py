"""A checkpoint of random weights, to measure a network's size, memory and speed without a download.

A weight is a stream of normally distributed numbers, cut into granules. The seed, the name of the weight and the index
of the granule determine the numbers of a granule. So any rows can be made on their own, and the weights depend neither
on the order in which they are read, nor on the size of the blocks, nor on the number of threads. numpy may change the
stream of a distribution between releases; the manifest names the release.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..network.config import LlamaConfig
from ..network.family import POST_ATTENTION, POST_MLP
from .base import Checkpoint, RawBlocks
from .tokenizer_files import folder_tokenizer_files, generation_config, to_json

GRANULE = 1 << 16  # numbers


class SyntheticCheckpoint(Checkpoint):
    """Random weights that keep activations near one at any depth and width, as training does.

    Mean and standard deviation:
    - norm weights: 1 and 0.1, less what the architecture adds to them (Gemma: 1). Those of the norms that write to the
      residual stream: 1 / sqrt(2 * layers) and a tenth of it.
    - biases: 0 and 0.02.
    - matrices: 0 and 1 / sqrt(columns). Those that write to the residual stream (o_proj, down_proj): 0 and
      1 / sqrt(columns * 2 * layers), so that the residual stream does not grow with depth.
    """

    def __init__(self, config: LlamaConfig, seed: int, folder: Path | None = None) -> None:
        """folder: a folder that may have a tokenizer; None: the artifact gets no tokenizer."""
        self.config, self.seed, self.path = config, seed, folder or Path("synthetic")
        self._folder = folder

    def dtype(self, name: str) -> str:
        return "F32"

    def rows(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        total, *rest = self.shape(name)
        count, width = min(count, total - first), math.prod(rest)
        mean, deviation = self._distribution(name)
        out = np.empty((count, width), np.float32)
        step = _power_of_two(GRANULE // width)  # rows per granule
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
        """Return (mean, standard deviation) of a weight."""
        family, written = self.config.family, (2 * self.config.num_hidden_layers) ** -0.5
        if name.endswith("norm.weight"):
            last = {family.norms.get(place) for place in (POST_ATTENTION, POST_MLP)}
            gain = written if name.split(".")[-2] in last else 1.0
            return gain - family.norm_offset, 0.1 * gain
        if name.endswith(".bias"):
            return 0.0, 0.02
        deviation = self.shape(name)[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation *= written
        return 0.0, deviation

    def _generator(self, name: str, granule: int) -> np.random.Generator:
        """Return the generator of one granule.

        Philox (Salmon et al., SC 2011) is a counter: another key, or another upper word of the counter, gives an
        independent stream.
        """
        key = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"), counter=granule << 128))


def _power_of_two(most: int) -> int:
    """Return the largest power of two that is at most `most`; 1 for less than 1."""
    return 1 << max(0, most.bit_length() - 1)
