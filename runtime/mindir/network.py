"""The sizes of the network that an artifact holds, from its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..artifact.manifest import Manifest
from ..artifact.manifest_checks import MOST_ELEMENTS
from ..errors import UserError

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
QKV_BIAS = {"llama": False, "mistral": False, "qwen2": True}  # model type -> whether q, k and v always have biases
# Architectures whose graphs this package cannot write.
OTHERS = (
    *("qwen3", "smollm3", "granite", "minicpm", "PanguEmbedded", "hunyuan_v1_dense", "internlm3", "olmo2", "olmo3"),
    *("exaone4", "ministral3", "phi3", "gemma", "gemma2", "gemma3_text"),
)
SLIDING = "sliding_attention"


@dataclass(frozen=True)
class Network:
    """What the graphs of an artifact are made from.

    Attributes:
        vocabulary, hidden, inner, layers, heads, groups, width: sizes of the model; width is that of a head.
        eps: of the norms; the graphs of the cpu op set hold it as the text of the config's number.
        tied: whether the head uses the embedding's weight.
        qkv_bias, o_bias, mlp_bias: which linear layers have biases.
        windows: each layer's sliding window; 0 if it has none, or if the cache is not larger than the window.
        rows, context: the batch, and the capacity of the cache.
        weights, cache: the weight format, and the dtype of the cache, as the manifest names them.
        target: the target of the export.
    """

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int
    width: int
    eps: float
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    windows: tuple[int, ...]
    rows: int
    context: int
    weights: str
    cache: str
    target: str

    @property
    def scale(self) -> float:
        """The factor of the attention's scores."""
        return self.width**-0.5

    @staticmethod
    def known(manifest: Manifest) -> bool:
        """Whether `of` takes the config: it raises the error if the runtime does not know the architecture at all."""
        return manifest.config.get("model_type") not in OTHERS

    @classmethod
    def of(cls, manifest: Manifest) -> Network:
        """Read the config of a manifest. Raises UserError, which names the key that is missing or not possible."""
        config = manifest.config
        vocabulary, hidden, inner, layers, heads, groups, width = (_size(config, name) for name in SIZES)
        _require(layers <= MOST_LAYERS, "num_hidden_layers", layers, f"at most {MOST_LAYERS}")
        _require(heads % groups == 0, "num_attention_heads", heads, f"a multiple of {groups} KV heads")
        _require(width % 2 == 0, "head_dim", width, "an even number")
        eps: Any = config.get("rms_norm_eps")
        number = isinstance(eps, float | int) and not isinstance(eps, bool)
        _require(number and 0 < eps <= 1000, "rms_norm_eps", eps, "a number above 0, at most 1,000")
        kind = config.get("model_type")
        _require(isinstance(kind, str) and kind in QKV_BIAS, "model_type", kind, f"one of {', '.join(QKV_BIAS)}")
        flags = {name: config.get(name, False) for name in ("tie_word_embeddings", "attention_bias", "mlp_bias")}
        for name, value in flags.items():
            _require(isinstance(value, bool), name, value, "true or false")
        tied, attention_bias, mlp_bias = flags.values()
        windows = tuple(0 if window >= manifest.context else window for window in _windows(config, layers))
        return cls(
            vocabulary=vocabulary,
            hidden=hidden,
            inner=inner,
            layers=layers,
            heads=heads,
            groups=groups,
            width=width,
            eps=eps,
            tied=tied,
            qkv_bias=attention_bias or QKV_BIAS[str(kind)],
            o_bias=attention_bias,
            mlp_bias=mlp_bias,
            windows=windows,
            rows=manifest.batch,
            context=manifest.context,
            weights=manifest.weights_format,
            cache=manifest.cache.dtype,
            target=manifest.target,
        )

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


def _windows(config: dict[str, Any], layers: int) -> list[int]:
    """Return each layer's window in the model: 0 if it has none."""
    window = config.get("sliding_window")
    kinds: Any = [SLIDING] * layers
    if config.get("model_type") == "qwen2":
        window = window if config.get("use_sliding_window") is True else None
        kinds = config.get("layer_types")
    if window is None:
        return [0] * layers
    whole = isinstance(window, int) and not isinstance(window, bool) and window > 0
    _require(whole, "sliding_window", window, "a positive whole number")
    listed = isinstance(kinds, list) and len(kinds) == layers
    _require(listed, "layer_types", kinds, f"a list of {layers} kinds")
    return [int(window) if kind == SLIDING else 0 for kind in kinds]


def _size(config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < MOST_ELEMENTS:
        raise _wrong(name, value, "a positive whole number")
    return value


def _require(condition: bool, name: str, found: object, needed: str) -> None:
    if not condition:
        raise _wrong(name, found, needed)


def _wrong(name: str, found: object, needed: str) -> UserError:
    text = repr(found)
    return UserError(
        f"config.{name} is {text if len(text) <= 80 else text[:77] + '...'} in manifest.json; needed: {needed}. "
        "Export again with this release"
    )
