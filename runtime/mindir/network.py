"""The sizes of the network that an artifact holds, from its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..artifact.manifest import Manifest
from .architectures import GELU, MAIN, HeadNorms, Norms, architecture_of
from .config_values import Config, flag, number, require, size

MOST_LAYERS = 1024
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
ACTIVATIONS = ("silu", GELU)


@dataclass(frozen=True)
class Network:
    """What the graphs of an artifact are made from.

    Attributes:
        vocabulary, hidden, inner, layers, heads, groups, width: sizes of the model; width is that of a head.
        eps: of the norms that read the residual stream. The graphs of the cpu op set hold it as text.
        norm_eps: of the other norms.
        tied: whether the head uses the embedding's weight.
        qkv_bias, o_bias, mlp_bias: which linear layers have biases.
        windows: each layer's sliding window; 0 if it has none, or if the cache is not larger than the window.
        ropes: the kind of each layer's rotary tables.
        norms, head_norms: of a layer, and of its queries and keys.
        activation: of the MLP.
        scale: the factor of the attention's scores.
        softcap, logits_softcap: the bounds of scores and logits; None for no bound.
        query_scale: beta and period of the factor of queries by position; None for no factor.
        rows, context: the batch, and the capacity of the cache.
        weights, cache: the weight format, and the dtype of the cache, as the manifest names them.
        target: the target of the export.
        format_version: of the artifact.
    """

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int
    width: int
    eps: float
    norm_eps: float
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    windows: tuple[int, ...]
    ropes: tuple[str, ...]
    norms: Norms
    head_norms: HeadNorms | None
    activation: str
    scale: float
    softcap: float | None
    logits_softcap: float | None
    query_scale: tuple[float, int] | None
    rows: int
    context: int
    weights: str
    cache: str
    target: str
    format_version: int

    @classmethod
    def of(cls, manifest: Manifest) -> Network:
        """Read the config of a manifest. Raises UserError, which names the key that is missing or not possible."""
        config = {key: value for key, value in manifest.config.items() if value is not None}
        vocabulary, hidden, inner, layers, heads, groups, width = (size(config, name) for name in SIZES)
        require(layers <= MOST_LAYERS, "num_hidden_layers", layers, f"at most {MOST_LAYERS}")
        require(heads % groups == 0, "num_attention_heads", heads, f"a multiple of {groups} KV heads")
        require(width % 2 == 0, "head_dim", width, "an even number")
        eps = number(config, "rms_norm_eps", 1000)
        known = architecture_of(config)
        activation = known.activation(config)
        require(activation in ACTIVATIONS, "hidden_act", activation, f"one of {', '.join(ACTIVATIONS)}")
        attention_bias = flag(config, *known.attention_bias)
        windows = _windows(config, layers)

        def cap(name: str) -> Any:
            return number(config, name) if known.capped and name in config else None

        return cls(
            vocabulary=vocabulary,
            hidden=hidden,
            inner=inner,
            layers=layers,
            heads=heads,
            groups=groups,
            width=width,
            eps=eps / known.multiplier(config) ** 2,
            norm_eps=eps,
            tied=flag(config, "tie_word_embeddings"),
            qkv_bias=attention_bias or known.qkv_bias,
            o_bias=attention_bias,
            mlp_bias=flag(config, *known.mlp_bias),
            windows=tuple(0 if window >= manifest.context else window for window in windows),
            ropes=tuple(known.rope(config, [window > 0 for window in windows])),
            norms=known.norms,
            head_norms=known.head_norms,
            activation=str(activation),
            scale=width**-0.5 if known.scale is None else known.scale(config),
            softcap=cap("attn_logit_softcapping"),
            logits_softcap=cap("final_logit_softcapping"),
            query_scale=known.query_scale(config),
            rows=manifest.batch,
            context=manifest.context,
            weights=manifest.weights_format,
            cache=manifest.cache.dtype,
            target=manifest.target,
            format_version=manifest.format_version,
        )

    @property
    def tables(self) -> dict[str, tuple[str, str]]:
        """Return the names of the rotary tables, cos and sin, by kind, in the order of the first layer of each."""
        return {kind: _table_names(kind) for kind in dict.fromkeys(self.ropes)}

    @property
    def head_norm_sizes(self) -> tuple[int, int]:
        """Return the sizes of the weights of the norms of queries and keys."""
        whole = self.head_norms is not None and self.head_norms.kind == "whole"
        return (self.heads * self.width, self.groups * self.width) if whole else (self.width, self.width)

    def linear(self, part: str) -> tuple[int, int, bool]:
        """Return (outputs, inputs, whether it has a bias) of a linear layer: q, k, v, o, gate, up or down."""
        queries, keys = self.heads * self.width, self.groups * self.width
        return {
            "q": (queries, self.hidden, self.qkv_bias),
            "k": (keys, self.hidden, self.qkv_bias),
            "v": (keys, self.hidden, self.qkv_bias),
            "o": (self.hidden, queries, self.o_bias),
            "gate": (self.inner, self.hidden, self.mlp_bias),
            "up": (self.inner, self.hidden, self.mlp_bias),
            "down": (self.hidden, self.inner, self.mlp_bias),
        }[part]


def _windows(config: Config, layers: int) -> list[int]:
    """Return each layer's window in the model: 0 if it has none."""
    windowed = architecture_of(config).windowed
    if windowed is None or "sliding_window" not in config:
        return [0] * layers
    window = size(config, "sliding_window")
    return [window if near else 0 for near in windowed(config, layers)]


def _table_names(kind: str) -> tuple[str, str]:
    below = "rope" if kind == MAIN else f"rope.{kind}"
    return f"{below}.cos", f"{below}.sin"
