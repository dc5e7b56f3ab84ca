"""The architectures, as data: how the graphs and the weights of each differ from Llama's, from the manifest's config.

The exporter knows more of them (exporter/network/family.py), and the runtime cannot import it. So this module repeats
what a graph shows. Every export compares the graphs of both, and the tests export two configs of each architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .config_values import SLIDING, Config, choices, flag, number, require, size

FULL = "full_attention"
# The rotary tables of a layer: the network's; those of layers with a window; those that rotate by nothing.
MAIN, LOCAL, NONE = "main", "local", "none"
GELU = "gelu_pytorch_tanh"


class Norms(NamedTuple):
    """The names of a layer's norms, each None if the architecture lacks it."""

    before_attention: str | None
    after_attention: str | None
    before_mlp: str | None
    after_mlp: str | None


BEFORE = Norms("input_layernorm", None, "post_attention_layernorm", None)
AFTER = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
BOTH = Norms("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


class HeadNorms(NamedTuple):
    """The norms of the queries and the keys: their names, and "each" head, the "whole" token, or "after_rope"."""

    q: str = "q_norm"
    k: str = "k_norm"
    kind: str = "each"


def _every_layer(config: Config, layers: int) -> list[bool]:
    return [True] * layers


def _from_max_window_layers(config: Config, layers: int) -> list[bool]:
    """Qwen: if use_sliding_window is true, the layers that layer_types names, or those from max_window_layers on."""
    if not flag(config, "use_sliding_window"):
        return [False] * layers
    if "layer_types" in config:
        return _listed(config, layers)
    first = config.get("max_window_layers", 28)
    require(isinstance(first, int), "max_window_layers", first, "a whole number")
    return [layer >= first for layer in range(layers)]


def _if_used(config: Config, layers: int) -> list[bool]:
    """SmolLM3: if use_sliding_window is true, the layers that layer_types names."""
    return _listed(config, layers) if flag(config, "use_sliding_window") else [False] * layers


def _all_but_nth(default: int) -> Callable[[Config, int], list[bool]]:
    """Return a reader: every layer but the last of each group, or those that layer_types names.

    sliding_window_pattern has the size of a group, or a letter for each layer of a group: L for one with the window.
    """

    def read(config: Config, layers: int) -> list[bool]:
        if "layer_types" in config:
            return _listed(config, layers)
        pattern = config.get("sliding_window_pattern", default)
        if isinstance(pattern, str) and pattern and set(pattern) <= set("LG"):
            return [pattern[layer % len(pattern)] == "L" for layer in range(layers)]
        group = size({"sliding_window_pattern": pattern}, "sliding_window_pattern")
        return [(layer + 1) % group != 0 for layer in range(layers)]

    return read


def _listed(config: Config, layers: int) -> list[bool]:
    return [kind == SLIDING for kind in choices(config, "layer_types", (FULL, SLIDING), layers)]


def _smollm3_rope(config: Config, windowed: list[bool]) -> list[str]:
    """no_rope_layers has 1 for a layer with a rotary embedding; without it, each nth layer has none."""
    layers = len(windowed)
    if config.get("no_rope_layers"):
        return [MAIN if rotates else NONE for rotates in choices(config, "no_rope_layers", (0, 1), layers)]
    interval = size(config, "no_rope_layer_interval")
    return [MAIN if (layer + 1) % interval else NONE for layer in range(layers)]


def _exaone4_rope(config: Config, windowed: list[bool]) -> list[str]:
    """Layers without a window have no rotary embedding, unless no layer has a window."""
    return [MAIN if near or not any(windowed) else NONE for near in windowed]


def _local_rope(key: str) -> Callable[[Config, list[bool]], list[str]]:
    """Return a reader: layers with a window have their own tables, unless these are equal to the others.

    key: of the theta of layers with a window in older configs; empty if these have one theta for all layers.
    """

    def read(config: Config, windowed: list[bool]) -> list[str]:
        main = config.get("rope_scaling") or config.get("rope_parameters") or {}
        require(isinstance(main, dict), "rope_parameters", main, "an object")
        theta, near = config.get("rope_theta", 10000.0), None
        if main.keys() & {FULL, SLIDING}:
            near, main = main.get(SLIDING), main.get(FULL) or {}
            for part in (near if near is not None else {}, main):
                require(isinstance(part, dict), "rope_parameters", part, "an object")
        main_theta = main.get("rope_theta", theta)
        local_theta = config.get(key, 10000.0) if key else main_theta
        if near is not None:
            local_theta = near.get("rope_theta", theta)
        scaled = (main.get("rope_type") or main.get("type") or "default") != "default"
        own = LOCAL if scaled or local_theta != main_theta else MAIN
        return [own if layer else MAIN for layer in windowed]

    return read


def _hidden_act(config: Config) -> object:
    return config.get("hidden_act", "silu")


def _gemma_act(config: Config) -> object:
    """hidden_activation takes precedence. "gelu" in early configs means its tanh approximation."""
    act = config.get("hidden_activation") or config.get("hidden_act") or GELU
    return GELU if act == "gelu" else act


@dataclass(frozen=True)
class GraphArchitecture:
    """One architecture. The functions take a config without the keys that are null.

    Attributes:
        qkv_bias: q, k and v always have biases.
        attention_bias, mlp_bias: the keys that say whether the linear layers have biases; the first present one counts.
        norms: of a layer.
        head_norms: of queries and keys, if it has them.
        windowed: returns which layers have the window, given the number of layers; None if the model has no window.
        rope: returns the kind of each layer's rotary tables, given which layers have the window.
        activation: returns that of the MLP.
        multiplier: returns what embeddings are multiplied by.
        residual: returns what the results of attention and MLP are multiplied by.
            The weights hold it, so no graph shows it; adapters need it.
        scale: returns what scores are multiplied by; None: 1 / sqrt(head_dim).
        capped: scores and logits may be bounded.
        query_scale: returns (beta, period) if queries are multiplied by 1 + beta * log(1 + floor(position / period)).
    """

    qkv_bias: bool = False
    attention_bias: tuple[str, ...] = ("attention_bias",)
    mlp_bias: tuple[str, ...] = ()
    norms: Norms = BEFORE
    head_norms: HeadNorms | None = None
    windowed: Callable[[Config, int], list[bool]] | None = None
    rope: Callable[[Config, list[bool]], list[str]] = lambda config, windowed: [MAIN] * len(windowed)
    activation: Callable[[Config], object] = _hidden_act
    multiplier: Callable[[Config], float] = lambda config: 1.0
    residual: Callable[[Config], float] = lambda config: 1.0
    scale: Callable[[Config], float] | None = None
    capped: bool = False
    query_scale: Callable[[Config], tuple[float, int] | None] = lambda config: None


def _root_of_hidden(config: Config) -> float:
    return float(size(config, "hidden_size") ** 0.5)


def _gemma2_scale(config: Config) -> float:
    return float(number(config, "query_pre_attn_scalar") ** -0.5)


def _ministral3_query_scale(config: Config) -> tuple[float, int] | None:
    """The period is the context of the rotary embedding before its scaling."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    require(isinstance(rope, dict), "rope_parameters", rope, "an object")
    if not rope.get("llama_4_scaling_beta"):
        return None
    period = "original_max_position_embeddings"
    found = next((each for each in (config, rope) if each.get(period)), {period: config.get("max_position_embeddings")})
    return number(rope, "llama_4_scaling_beta"), size(found, period)


# model_type -> the architecture
ARCHITECTURES = {
    "llama": GraphArchitecture(mlp_bias=("mlp_bias",)),
    "mistral": GraphArchitecture(attention_bias=(), windowed=_every_layer),
    "qwen2": GraphArchitecture(qkv_bias=True, attention_bias=(), windowed=_from_max_window_layers),
    "qwen3": GraphArchitecture(head_norms=HeadNorms(), windowed=_from_max_window_layers),
    "smollm3": GraphArchitecture(mlp_bias=("mlp_bias",), windowed=_if_used, rope=_smollm3_rope),
    "granite": GraphArchitecture(
        mlp_bias=("mlp_bias",),
        multiplier=lambda config: number(config, "embedding_multiplier"),
        residual=lambda config: number(config, "residual_multiplier"),
        scale=lambda config: number(config, "attention_multiplier"),
    ),
    "minicpm": GraphArchitecture(
        multiplier=lambda config: number(config, "scale_emb"),
        residual=lambda config: float(number(config, "scale_depth") / size(config, "num_hidden_layers") ** 0.5),
    ),
    "PanguEmbedded": GraphArchitecture(attention_bias=("bias",)),
    "hunyuan_v1_dense": GraphArchitecture(head_norms=HeadNorms("query_layernorm", "key_layernorm", "after_rope")),
    "internlm3": GraphArchitecture(attention_bias=("attention_bias", "qkv_bias"), mlp_bias=("mlp_bias", "bias")),
    "exaone": GraphArchitecture(mlp_bias=("mlp_bias",)),
    "olmo2": GraphArchitecture(norms=AFTER, head_norms=HeadNorms(kind="whole")),
    "olmo3": GraphArchitecture(
        norms=AFTER, head_norms=HeadNorms(kind="whole"), windowed=_all_but_nth(4), rope=_local_rope("")
    ),
    "exaone4": GraphArchitecture(
        attention_bias=(), norms=AFTER, head_norms=HeadNorms(), windowed=_all_but_nth(4), rope=_exaone4_rope
    ),
    "ministral3": GraphArchitecture(attention_bias=(), windowed=_every_layer, query_scale=_ministral3_query_scale),
    "phi3": GraphArchitecture(windowed=_every_layer),
    "gemma": GraphArchitecture(activation=_gemma_act, multiplier=_root_of_hidden),
    "gemma2": GraphArchitecture(
        norms=BOTH,
        windowed=_all_but_nth(2),
        activation=_gemma_act,
        multiplier=_root_of_hidden,
        scale=_gemma2_scale,
        capped=True,
    ),
    "gemma3_text": GraphArchitecture(
        norms=BOTH,
        head_norms=HeadNorms(),
        windowed=_all_but_nth(6),
        rope=_local_rope("rope_local_base_freq"),
        activation=_gemma_act,
        multiplier=_root_of_hidden,
        scale=_gemma2_scale,
        capped=True,
    ),
}


def architecture_of(config: Config) -> GraphArchitecture:
    """Return the architecture that a config names. Raises UserError if the runtime does not know it."""
    kind = config.get("model_type")
    known = isinstance(kind, str) and kind in ARCHITECTURES
    require(known, "model_type", kind, f"one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[str(kind)]
