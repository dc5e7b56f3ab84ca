"""Compute rotary tables in float64 for every supported rope kind.

A network has up to three kinds of tables: "main"; "local" for layers with a window, if their theta differs; and "none"
for layers without a rotary embedding, whose tables rotate by nothing. If a part of each head is rotated, the tables
rotate the rest by nothing (checkpoint/folded.py arranges the elements). In graphs of built-in operators, the queries
have tables of their own, "query", if a factor by position multiplies them (Ministral 3).

- default: arXiv:2104.09864.
- linear: position interpolation, arXiv:2306.15595.
- yarn: arXiv:2309.00071.
- llama3: the smoothed frequency scaling published with Llama 3.1.
- longrope: arXiv:2402.13753. Its frequencies change once, where a sequence exceeds the original maximum. A table that
  is not longer than the original maximum has the short factors, and a longer one the long factors. So a short prompt in
  a long context differs from transformers, as it does in other static runtimes.
- ntk_alpha: Hunyuan's "dynamic" with a fixed alpha.
- dynamic (NTK): equal to default while the context stays within the original maximum. Beyond it, the frequencies change
  with the running length, and a table cannot represent them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgellama.errors import UserError, shown

from .config import LlamaConfig
from .config_types import CORRECT
from .rope_scaling import RopeScaling

LARGEST_FACTOR = 1e6  # far above any model's, and far below the largest float16 squared
MAIN, LOCAL, NONE, QUERY = "main", "local", "none", "query"
QUERY_NAMES = ["rope.query.cos", "rope.query.sin"]


def rope_kinds(config: LlamaConfig) -> tuple[str, ...]:
    """Return the kind of each layer's tables."""
    kinds = []
    for layer in range(config.num_hidden_layers):
        windowed = bool(config.windows[layer]) and config.local_rope_theta is not None
        kinds.append(NONE if layer in config.layers_without_rope else LOCAL if windowed else MAIN)
    return tuple(kinds)


def rope_names(config: LlamaConfig) -> list[str]:
    """Return the names of the network's tables in the graphs, in the order of their first layer: cos, sin, cos, ..."""
    kinds = dict.fromkeys(rope_kinds(config))
    return [f"rope.{part}" if kind == MAIN else f"rope.{kind}.{part}" for kind in kinds for part in ("cos", "sin")]


def rope_index(config: LlamaConfig, layer: int) -> int:
    """Return the index in `rope_names` of a layer's cos; its sin follows."""
    kinds = rope_kinds(config)
    return 2 * list(dict.fromkeys(kinds)).index(kinds[layer])


def rope_tables(
    config: LlamaConfig, positions: int, kind: str = MAIN
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (cos, sin), each float32 [positions, head_dim/2]; row p belongs to position p.

    Both include yarn's attention factor. Raises UserError if the rope has no table of that length.
    """
    half, rotated = config.head_dim // 2, config.rotary_dim // 2
    cos, sin = np.ones((positions, half), np.float32), np.zeros((positions, half), np.float32)
    if kind == NONE:
        return cos, sin
    _check_length(config, positions)
    frequency, factor = rope_frequencies(config, positions, kind)
    if not factor <= LARGEST_FACTOR:
        raise UserError(
            f"the rope's attention factor (attention_factor, or from mscale and factor) is {factor:g}; needed: at most "
            f"{LARGEST_FACTOR:g}. {CORRECT}"
        )
    angle = np.arange(positions, dtype=np.float64)[:, None] * frequency  # [positions, rotated]
    cos[:, :rotated] = np.cos(angle) * factor
    sin[:, :rotated] = np.sin(angle) * factor
    if kind == QUERY and (scale := query_scale(config)) is not None:
        beta, period = scale
        by_position = (1 + beta * np.log1p(np.arange(positions) // period))[:, None]
        cos, sin = (cos * by_position).astype(np.float32), (sin * by_position).astype(np.float32)
    return cos, sin


def query_scale(config: LlamaConfig) -> tuple[float, int] | None:
    """Return (beta, period) if the query at position p is multiplied by 1 + beta * log(1 + floor(p / period)).

    Raises UserError if beta is so large that the factor is not finite.
    """
    scaling = config.rope_scaling
    if scaling is None or not scaling.llama_4_scaling_beta:
        return None
    if scaling.llama_4_scaling_beta > LARGEST_FACTOR:
        raise UserError(
            f"llama_4_scaling_beta = {scaling.llama_4_scaling_beta:g} in the config; needed: at most "
            f"{LARGEST_FACTOR:g}. {CORRECT}"
        )
    return scaling.llama_4_scaling_beta, scaling.original_max_position_embeddings or 0


def _check_length(config: LlamaConfig, positions: int) -> None:
    """Raise UserError if a rope changes with the running length within `positions`."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type == "dynamic":
        limit = config.max_position_embeddings
        limit = min(limit, scaling.original_max_position_embeddings or limit)
        if positions > limit:
            raise UserError(
                f"context {positions} is beyond the maximum of {limit} positions of this model's dynamic (NTK) rope; "
                f"beyond it, the frequencies change with the running length. Export with CONTEXT={limit} or less"
            )


def rope_table(name: str, config: LlamaConfig, positions: int) -> NDArray[np.float32]:
    """Return one table by its name in the graphs, one of `rope_names`."""
    _, *kind, part = name.split(".")
    cos, sin = rope_tables(config, positions, *kind)
    return {"cos": cos, "sin": sin}[part]


def rope_frequencies(config: LlamaConfig, positions: int = 0, kind: str = MAIN) -> tuple[NDArray[np.float64], float]:
    """Return (frequencies in radians per position, float64 [rotary_dim/2]; the factor on cos and sin).

    positions: the length of the table; it decides between the factors of longrope.

    Raises UserError if the parameters give no finite numbers.
    """
    try:
        with np.errstate(all="ignore"):
            frequencies, factor = _frequencies(config, positions, kind)
        finite = bool(np.isfinite(frequencies).all()) and math.isfinite(factor)
    except (ArithmeticError, ValueError):  # log(0), log(1) as a divisor, numbers beyond float64
        finite = False
    if not finite:
        raise UserError(
            f"the rope parameters give no finite frequencies: rope_theta = {config.rope_theta}, rope_scaling = "
            f"{shown(config.rope_scaling, 300)}. {CORRECT}"
        )
    return frequencies, factor


def _frequencies(config: LlamaConfig, positions: int, kind: str) -> tuple[NDArray[np.float64], float]:
    exponent = np.arange(0, config.rotary_dim, 2, dtype=np.float64) / config.rotary_dim
    scaling = config.rope_scaling
    if kind == LOCAL and config.local_rope_theta is not None:
        return config.local_rope_theta**-exponent, 1.0
    base = config.rope_theta**-exponent
    if scaling is None or scaling.rope_type == "dynamic":
        return base, 1.0
    factor = scaling.factor or 1.0
    if scaling.rope_type == "linear":
        return base / factor, 1.0
    if scaling.rope_type == "llama3":
        return base / llama3_divisors(base, scaling, factor), 1.0
    if scaling.rope_type == "ntk_alpha":
        stretch = (scaling.alpha or 1.0) ** (config.rotary_dim / (config.rotary_dim - 2))
        return (config.rope_theta * stretch) ** -exponent, 1.0
    if scaling.rope_type == "longrope":
        original = scaling.original_max_position_embeddings or 0
        factors = scaling.short_factor if positions <= original else scaling.long_factor
        attention = scaling.attention_factor
        if attention is None:
            attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        return base / np.asarray(factors), attention
    return _yarn(base, config.rope_theta, scaling, factor)


def llama3_divisors(frequency: NDArray[np.float64], scaling: RopeScaling, factor: float) -> NDArray[np.float64]:
    """Return the divisor of each frequency in llama3 scaling: 1 for short wavelengths, `factor` for long ones."""
    low, high = scaling.low_freq_factor or 0.0, scaling.high_freq_factor or 0.0
    turns = (scaling.original_max_position_embeddings or 0) * frequency / (2 * np.pi)  # within the original context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1 - smooth) / factor + smooth)


def _yarn(
    frequency: NDArray[np.float64], theta: float, scaling: RopeScaling, factor: float
) -> tuple[NDArray[np.float64], float]:
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
    scaled = frequency * (interpolated / factor + 1 - interpolated)
    return scaled, _yarn_attention_factor(scaling, factor)


def _yarn_attention_factor(scaling: RopeScaling, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)
