"""Compute rotary tables in float64 for every supported rope kind.

- default: arXiv:2104.09864.
- linear: position interpolation, arXiv:2306.15595.
- yarn: arXiv:2309.00071.
- llama3: the smoothed frequency scaling published with Llama 3.1.
- dynamic (NTK): equal to default while the context stays within the original maximum. Beyond it, the frequencies change
  with the running length, and a table cannot represent them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgellama.errors import UserError, shown

from .config import LlamaConfig, RopeScaling
from .config_types import CORRECT


def rope_tables(config: LlamaConfig, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (cos, sin), each float32 [positions, head_dim/2]; row p belongs to position p.

    Both include yarn's attention factor. Raises UserError if a dynamic rope has no table of that length.
    """
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type == "dynamic":
        limit = config.max_position_embeddings
        limit = min(limit, scaling.original_max_position_embeddings or limit)
        if positions > limit:
            raise UserError(
                f"context {positions} is beyond the maximum of {limit} positions of this model's dynamic (NTK) rope; "
                f"beyond it, the frequencies change with the running length. Export with CONTEXT={limit} or less"
            )
    frequency, factor = rope_frequencies(config)
    angle = np.arange(positions, dtype=np.float64)[:, None] * frequency  # [positions, D/2]
    return (np.cos(angle) * factor).astype(np.float32), (np.sin(angle) * factor).astype(np.float32)


def rope_table(name: str, config: LlamaConfig, positions: int) -> NDArray[np.float32]:
    """Return one table by its name in the graphs: rope.cos or rope.sin."""
    cos, sin = rope_tables(config, positions)
    return {"rope.cos": cos, "rope.sin": sin}[name]


def rope_frequencies(config: LlamaConfig) -> tuple[NDArray[np.float64], float]:
    """Return (frequencies in radians per position, float64 [head_dim/2]; the factor on cos and sin).

    Raises UserError if the parameters give no finite numbers.
    """
    try:
        with np.errstate(all="ignore"):
            frequencies, factor = _frequencies(config)
        finite = bool(np.isfinite(frequencies).all()) and math.isfinite(factor)
    except (ArithmeticError, ValueError):  # log(0), log(1) as a divisor, numbers beyond float64
        finite = False
    if not finite:
        raise UserError(
            f"the rope parameters give no finite frequencies: rope_theta = {config.rope_theta}, rope_scaling = "
            f"{shown(config.rope_scaling, 300)}. {CORRECT}"
        )
    return frequencies, factor


def _frequencies(config: LlamaConfig) -> tuple[NDArray[np.float64], float]:
    base = config.rope_theta ** -(np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type == "dynamic":
        return base, 1.0
    if scaling.rope_type == "linear":
        return base / scaling.factor, 1.0
    if scaling.rope_type == "llama3":
        return base / llama3_divisors(base, scaling), 1.0
    return _yarn(base, config.rope_theta, scaling)


def llama3_divisors(frequency: NDArray[np.float64], scaling: RopeScaling) -> NDArray[np.float64]:
    """Return the divisor of each frequency in llama3 scaling: 1 for short wavelengths, `factor` for long ones."""
    low, high = scaling.low_freq_factor or 0.0, scaling.high_freq_factor or 0.0
    turns = (scaling.original_max_position_embeddings or 0) * frequency / (2 * np.pi)  # within the original context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1 - smooth) / scaling.factor + smooth)


def _yarn(frequency: NDArray[np.float64], theta: float, scaling: RopeScaling) -> tuple[NDArray[np.float64], float]:
    dim = 2 * len(frequency)
    original = scaling.original_max_position_embeddings or 0

    def dimension(turns: float) -> float:
        """Return the (fractional) index of the dimension with this number of turns within the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast or 32.0), dimension(scaling.beta_slow or 1.0)
    if scaling.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001  # avoids a division by zero if the bounds are equal
    interpolated = np.clip((np.arange(len(frequency)) - low) / width, 0.0, 1.0)
    scaled = frequency * (interpolated / scaling.factor + 1 - interpolated)
    return scaled, _yarn_attention_factor(scaling)


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)
