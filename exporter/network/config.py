"""LlamaConfig: the description of a network. The schema is Hugging Face's config.json.

Field names are those of transformers' LlamaConfig, MistralConfig and Qwen2Config (family.py has the differences). An
unsupported key that changes the mathematics raises an error that names the key; config_keys.py lists the neutral keys.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from edgellama.errors import UserError, shown

from .config_keys import refusal
from .config_types import CORRECT, KINDS, ROPE_KINDS, check_type, check_types
from .family import FAMILIES, SLIDING, family_of, read_windows, unknown_family, windows_as_hf

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)

MOST_PROBLEMS = 5  # keys that one message names

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
            raise UserError(f"rope type {self.rope_type!r} does not take {', '.join(surplus)}. {CORRECT}")
        for name in given:
            check_type(f"rope_scaling.{name}", ROPE_KINDS[name], getattr(self, name))
        if self.rope_type == "llama3" and (self.high_freq_factor or 0) <= (self.low_freq_factor or 0):
            raise UserError(
                f"rope_scaling.high_freq_factor = {self.high_freq_factor} must be above "
                f"low_freq_factor = {self.low_freq_factor}. {CORRECT}"
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
            raise UserError(unknown_family(self.model_type))
        for field in fields(self):
            if field.name in KINDS and field.name != "rope_scaling":  # which checks itself
                check_type(field.name, KINDS[field.name], getattr(self, field.name))
        if self.hidden_act != "silu":
            raise UserError(
                f"hidden_act {shown(self.hidden_act)} is not supported; needed: 'silu', as Llama's MLP has. Choose a "
                "checkpoint with it"
            )
        _multiple("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        _multiple("num_attention_heads", self.num_attention_heads, "num_key_value_heads", self.num_key_value_heads)
        if self.head_dim % 2:
            raise UserError(f"head_dim = {self.head_dim} is odd; rotary embeddings need an even head size. {CORRECT}")

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
        check_types(hf)
        family = family_of(hf)
        values = {key: value for key, value in {**family.defaults, **hf}.items() if value is not None}
        if missing := [key for key in REQUIRED if key not in values]:
            raise UserError(f"config.json lacks {', '.join(missing)}. Use the one that was published with the model")
        known = _KNOWN | family.keys
        problems = [why for key in hf if key not in known if (why := refusal(key, hf[key]))]
        if problems:
            raise UserError("; ".join(problems[:MOST_PROBLEMS]))

        found = {key: values[key] for key in _PLAIN_FIELDS if key in values}
        for key in _OF_SOME - family.keys:  # `refusal` has checked that their values are neutral
            found.pop(key, None)
        if "sliding_window" in family.keys:
            found["sliding_window"], found["layer_types"] = read_windows(values)
        heads = found["num_attention_heads"]
        _multiple("hidden_size", found["hidden_size"], "num_attention_heads", heads)
        found.setdefault("num_key_value_heads", heads)
        found.setdefault("head_dim", found["hidden_size"] // heads)
        found["rope_theta"], found["rope_scaling"] = _read_rope(values)
        eos = values.get("eos_token_id", ())
        found["eos_token_id"] = tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
        if found.get("pad_token_id") == -1:  # the first Llama configs use -1 for "none"
            found["pad_token_id"] = None
        return cls(**found)

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
        rope = dict(values[key])
        # "type" is the older name of "rope_type"; published configs have one of them or both.
        kind = rope.pop("type", None)
        rope["rope_type"] = rope.get("rope_type") or kind or "default"
        rope.setdefault("rope_theta", values.get("rope_theta", 10000.0))
        found.append(rope)
    if len(found) == 2 and found[0] != found[1]:
        raise UserError(
            f"config.json has rope_scaling {shown(values['rope_scaling'], 300)} and rope_parameters "
            f"{shown(values['rope_parameters'], 300)}, which differ. Remove the wrong one"
        )
    rope = found[0] if found else {"rope_type": "default", "rope_theta": values.get("rope_theta", 10000.0)}
    rope = {key: value for key, value in rope.items() if value is not None}

    kind, theta = rope["rope_type"], rope.pop("rope_theta")
    if kind not in ROPE_PARAMETERS:
        raise UserError(_unknown_rope_type(kind))
    partial = rope.pop("partial_rotary_factor", 1.0)
    if partial != 1:
        raise UserError(
            f"partial_rotary_factor = {partial} is not supported; Llama rotates the whole head (1.0). Choose a "
            "checkpoint without it"
        )
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
            f"rope type {kind!r} does not take {', '.join(f'{key[:40]} = {shown(rope[key])}' for key in unknown[:5])}; "
            f"it takes {', '.join(sorted(required | optional)) or 'nothing but rope_theta'}. {CORRECT}"
        )
    if missing := sorted(required - rope.keys()):
        raise UserError(_lacks(kind, missing))
    return theta, None if kind == "default" else RopeScaling(**rope)


def _lacks(kind: str, missing: list[str]) -> str:
    return f"rope type {kind!r} needs {', '.join(missing)}. Add it to rope_scaling in config.json"


def _unknown_rope_type(kind: Any) -> str:
    why = " (its frequencies depend on the running length)" if kind == "longrope" else ""
    known = ", ".join(ROPE_PARAMETERS)
    return f"rope type {shown(kind)} is not supported{why}; supported: {known}. Choose a checkpoint with one of them"


def _multiple(name: str, value: int, of_name: str, of: int) -> None:
    if value % of:
        raise UserError(f"{name} = {value} in the config must be a multiple of {of_name} = {of}. {CORRECT}")
