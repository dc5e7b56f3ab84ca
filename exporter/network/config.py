"""LlamaConfig: the description of a network. The schema is Hugging Face's config.json.

Field names are those of transformers' LlamaConfig, MistralConfig and Qwen2Config (family.py has the differences). An
unsupported key that changes the mathematics raises an error that names the key; config_keys.py lists the neutral keys.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from edgellama.errors import UserError

from .config_keys import refusal
from .family import FAMILIES, SLIDING, family_of, known_families, read_windows, windows_as_hf

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)

# Rope kinds and their parameters: (required, optional).
ROPE_PARAMETERS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "default": (frozenset(), frozenset()),
    "linear": (frozenset({"factor"}), frozenset()),
    "dynamic": (frozenset({"factor"}), frozenset({"original_max_position_embeddings"})),
    "yarn": (
        frozenset({"factor", "original_max_position_embeddings"}),
        frozenset({"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}),
    ),
    "llama3": (
        frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
        frozenset(),
    ),
}


@dataclass(frozen=True)
class RopeScaling:
    """Parameters of a rope kind other than "default". A parameter that does not belong to the kind is None.

    Raises UserError for an unknown kind, a missing or surplus parameter, or a value out of range.
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_PARAMETERS or self.rope_type == "default":
            raise UserError(_unknown_rope_type(self.rope_type))
        given = self.to_dict().keys() - {"rope_type"}
        required, optional = ROPE_PARAMETERS[self.rope_type]
        if missing := sorted(required - given):
            raise UserError(_lacks(self.rope_type, missing))
        if surplus := sorted(given - required - optional):
            raise UserError(f"rope type {self.rope_type!r} does not take {', '.join(surplus)}")
        for name in given - {"truncate"}:
            _positive(f"rope_scaling.{name}", getattr(self, name))
        if self.rope_type == "llama3" and (self.high_freq_factor or 0) <= (self.low_freq_factor or 0):
            raise UserError(
                f"rope_scaling.high_freq_factor = {self.high_freq_factor} must be above "
                f"low_freq_factor = {self.low_freq_factor}"
            )

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class LlamaConfig:
    """A network of the Llama family. Sizes are in elements, token ids are those of the checkpoint's vocabulary.

    Raises UserError if a value is invalid or contradicts another one. Later code does not check the values again.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # q, k, v and o projections; only in Llama configs
    mlp_bias: bool = False  # gate, up and down projections; only in Llama configs
    sliding_window: int | None = None  # number of latest positions that a token sees, its own included
    layer_types: tuple[str, ...] = ()  # the kind of each layer, FULL or SLIDING; empty without a window
    hidden_act: str = "silu"
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()  # each of them ends a sequence
    pad_token_id: int | None = None
    model_type: str = "llama"

    def __post_init__(self) -> None:
        if self.model_type not in FAMILIES:
            raise UserError(f"model_type {self.model_type!r} is not supported; this release exports {known_families()}")
        for name in (*REQUIRED[:-1], "num_key_value_heads", "head_dim"):
            _positive_integer(name, getattr(self, name))
        _positive("rms_norm_eps", self.rms_norm_eps)
        _positive("rope_theta", self.rope_theta)
        for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} = {getattr(self, name)!r} in the config must be true or false")
        if self.sliding_window is not None:
            _positive_integer("sliding_window", self.sliding_window)
        if self.hidden_act != "silu":
            raise UserError(f"hidden_act {self.hidden_act!r} is not supported; Llama's MLP is exported with 'silu'")
        _multiple("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        _multiple("num_attention_heads", self.num_attention_heads, "num_key_value_heads", self.num_key_value_heads)
        for token in (self.bos_token_id, self.pad_token_id, *self.eos_token_id):
            if token is not None and (not isinstance(token, int) or token < 0):
                raise UserError(f"token id {token!r} in the config must be an integer of at least 0")
        if self.head_dim % 2:
            raise UserError(f"head_dim = {self.head_dim} is odd; rotary embeddings need an even head size")

    @property
    def qkv_bias(self) -> bool:
        """Whether the q, k and v projections have biases. The o projection has one only with attention_bias."""
        return self.attention_bias or FAMILIES[self.model_type].qkv_bias

    @property
    def windows(self) -> tuple[int, ...]:
        """Each layer's sliding window: position i sees i - window + 1 .. i. 0: it sees all earlier positions."""
        if self.sliding_window is None:
            return (0,) * self.num_hidden_layers
        return tuple(self.sliding_window if kind == SLIDING else 0 for kind in self.layer_types)

    @classmethod
    def from_dict(cls, hf: dict[str, Any]) -> LlamaConfig:
        """Return the LlamaConfig of a config.json of transformers 4 or 5.

        Raises UserError for a missing key, and for a key or value that is not supported.
        """
        family = family_of(hf)
        values = {key: value for key, value in {**family.defaults, **hf}.items() if value is not None}
        if missing := [key for key in REQUIRED if key not in values]:
            raise UserError(f"config.json lacks {', '.join(missing)}; use the one that was published with the model")
        known = _KNOWN | family.keys
        problems = [why for key in hf if key not in known if (why := refusal(key, hf[key]))]
        if problems:
            raise UserError("config.json: " + "; ".join(problems))

        fields = {key: values[key] for key in _PLAIN_FIELDS if key in values}
        for key in _OF_SOME - family.keys:  # `refusal` has checked that their values are neutral
            fields.pop(key, None)
        if "sliding_window" in family.keys:
            _positive_integer("num_hidden_layers", fields["num_hidden_layers"])
            fields["sliding_window"], fields["layer_types"] = read_windows(values)
        heads = fields["num_attention_heads"]
        _positive_integer("num_attention_heads", heads)
        _positive_integer("hidden_size", fields["hidden_size"])
        _multiple("hidden_size", fields["hidden_size"], "num_attention_heads", heads)
        fields.setdefault("num_key_value_heads", heads)
        fields.setdefault("head_dim", fields["hidden_size"] // heads)
        fields["rope_theta"], fields["rope_scaling"] = _read_rope(values)
        eos = values.get("eos_token_id", ())
        fields["eos_token_id"] = tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
        if fields.get("pad_token_id") == -1:  # the first Llama configs use -1 for "none"
            fields["pad_token_id"] = None
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a config.json, from which transformers 4 and 5 build the same network."""
        family = FAMILIES[self.model_type]
        out = {key: value for key, value in asdict(self).items() if key not in _OF_SOME or key in family.keys}
        out |= windows_as_hf(self.model_type, self.sliding_window, self.layer_types, self.num_hidden_layers)
        out["architectures"] = [family.architecture]
        out["rope_scaling"] = self.rope_scaling.to_dict() if self.rope_scaling else None
        eos = self.eos_token_id
        out["eos_token_id"] = None if not eos else eos[0] if len(eos) == 1 else list(eos)
        return out


_OF_SOME = frozenset().union(*(family.keys for family in FAMILIES.values()))  # keys that not every family has
_PLAIN_FIELDS = frozenset(LlamaConfig.__dataclass_fields__) - {"rope_theta", "rope_scaling", "eos_token_id"}
_SHARED = {"rope_parameters", "original_max_position_embeddings"}
_KNOWN = (frozenset(LlamaConfig.__dataclass_fields__) | _SHARED) - _OF_SOME


def _read_rope(values: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Return (rope_theta, scaling), from `rope_scaling` + `rope_theta` (transformers 4) or `rope_parameters` (5)."""
    found = []
    for key in ("rope_scaling", "rope_parameters"):
        if not values.get(key):
            continue
        if not isinstance(values[key], dict):
            raise UserError(f"{key} = {values[key]!r} in the config must be an object of rope parameters")
        rope = dict(values[key])
        # "type" is the older name of "rope_type"; published configs have one of them or both.
        kind = rope.pop("type", None)
        rope["rope_type"] = rope.get("rope_type") or kind or "default"
        rope.setdefault("rope_theta", values.get("rope_theta", 10000.0))
        found.append(rope)
    if len(found) == 2 and found[0] != found[1]:
        raise UserError(
            f"config.json has rope_scaling {values['rope_scaling']!r} and rope_parameters "
            f"{values['rope_parameters']!r}, which differ; remove the wrong one"
        )
    rope = found[0] if found else {"rope_type": "default", "rope_theta": values.get("rope_theta", 10000.0)}
    rope = {key: value for key, value in rope.items() if value is not None}

    kind, theta = rope["rope_type"], rope.pop("rope_theta")
    if kind not in ROPE_PARAMETERS:
        raise UserError(_unknown_rope_type(kind))
    partial = rope.pop("partial_rotary_factor", 1.0)
    if partial != 1:
        raise UserError(f"partial_rotary_factor = {partial} is not supported; Llama rotates the whole head (1.0)")
    required, optional = ROPE_PARAMETERS[kind]
    if "original_max_position_embeddings" in required:
        # As in transformers: the top-level value takes precedence, and the context length is the default.
        outer = values.get("original_max_position_embeddings")
        inner = rope.get("original_max_position_embeddings")
        rope["original_max_position_embeddings"] = outer or inner or values["max_position_embeddings"]
    if kind == "yarn" and "factor" not in rope:
        rope["factor"] = values["max_position_embeddings"] / rope["original_max_position_embeddings"]
    if unknown := sorted(rope.keys() - required - optional - {"rope_type"}):
        raise UserError(
            f"rope type {kind!r} does not take {', '.join(f'{key} = {rope[key]!r}' for key in unknown)}; "
            f"it takes {', '.join(sorted(required | optional)) or 'nothing but rope_theta'}"
        )
    if missing := sorted(required - rope.keys()):
        raise UserError(_lacks(kind, missing))
    return theta, None if kind == "default" else RopeScaling(**rope)


def _lacks(kind: str, missing: list[str]) -> str:
    return f"rope type {kind!r} needs {', '.join(missing)}; add to rope_scaling in config.json"


def _unknown_rope_type(kind: Any) -> str:
    why = " (its frequencies depend on the running length)" if kind == "longrope" else ""
    return f"rope type {kind!r} is not supported{why}; supported: {', '.join(ROPE_PARAMETERS)}"


def _positive(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise UserError(f"{name} = {value!r} in the config must be a number above 0")


def _positive_integer(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UserError(f"{name} = {value!r} in the config must be an integer above 0")


def _multiple(name: str, value: int, of_name: str, of: int) -> None:
    if value % of:
        raise UserError(f"{name} = {value} in the config must be a multiple of {of_name} = {of}")
