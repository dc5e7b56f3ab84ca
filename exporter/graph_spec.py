"""What a step graph is fixed to. TensorSpec (runtime/artifact/manifest.py) describes its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What a graph is fixed to.

    Attributes:
        rows: B, the rows of the batch.
        tokens: S, the tokens per row in one call: the bucket.
        context: C, the capacity of the cache in tokens per row.
        weights: the weight format, as WEIGHTS names it.
        cache: the dtype of the KV cache, as CACHE names it.
        chip: the chip of an Ascend target, a key of kernels.ascend.chips.CHIPS; None for other targets.
    """

    rows: int
    tokens: int
    context: int
    weights: str = "fp32"
    cache: str = "float32"
    chip: str | None = None
