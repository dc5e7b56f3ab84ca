"""The contract of a step graph: the names of its inputs, and their shapes at each bucket.

The exporter writes graphs by this contract. The runtime feeds them by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .manifest import TensorSpec

SELF_MASKS = ("self_mask", "window_self_mask")
CACHE_MASKS = ("cache_mask", "window_cache_mask")
STEP_INPUTS = ("tokens", "tokens_by_step", "start", "length", "positions", "last", *CACHE_MASKS, *SELF_MASKS)
# Each is followed by the layer's number. The scales exist beside an int8 cache only.
CACHE_PREFIXES = ("k_cache.", "v_cache.", "k_scale.", "v_scale.")
# Ends the name of an input that takes all tensors below a name as one array of bytes: model.layers.0.*
STRETCH = ".*"


def shape_at(spec: TensorSpec, traced: int, bucket: int) -> tuple[int, ...]:
    """Return the shape of a graph input at `bucket` tokens.

    Args:
        spec: the input, with its shape at `traced` tokens
    """
    if spec.name in ("tokens", "positions"):  # [B, S]
        return (spec.shape[0], bucket)
    if spec.name == "tokens_by_step":  # [S, B]: CANN's gears change the first dimension only
        return (bucket, spec.shape[1])
    if spec.name in (*SELF_MASKS, "window_cache_mask"):  # [B, 1, R*S, S or C], R query heads per KV head
        rows, one, grouped, columns = spec.shape
        return (rows, one, grouped // traced * bucket, bucket if spec.name in SELF_MASKS else columns)
    return spec.shape
