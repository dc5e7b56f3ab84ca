"""LlamaConfig: the description of a network. The schema is Hugging Face's config.json.

Field names are those of transformers' LlamaConfig; family.py has the differences of other architectures, and
rope_scaling.py the rotary embeddings. An unsupported key that changes the mathematics raises an error that names the
key; config_keys.py lists the neutral keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from edgellama.errors import UserError, shown

from .config_keys import MOST_KEYS, refusals
from .config_types import CORRECT, KINDS, check_type, check_types
from .family import FAMILIES, Family, family_of, model_type_of, unknown_family
from .rope_scaling import ORIGINAL, ORIGINAL_KINDS, RopeScaling, longest_context, read_ropes, rescaled
from .windows import SLIDING, windows_as_hf

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


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
    # The following fields differ from these defaults in some architectures only; see family.py.
    attention_scale: float | None = None  # multiplies the scores; None: 1 / sqrt(head_dim)
    attn_logit_softcapping: float | None = None  # scores become cap * tanh(score / cap)
    final_logit_softcapping: float | None = None  # logits likewise
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # multiplies what attention and MLP add to the residual stream
    logits_multiplier: float = 1.0
    layers_without_rope: tuple[int, ...] = ()
    local_rope_theta: float | None = None  # of layers with a window, if it differs; they have no scaling
    partial_rotary_factor: float = 1.0  # the share of a head that is rotated, its first elements
    # The keys of config.json, if to_dict cannot restore them from the other fields.
    published: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.model_type not in FAMILIES:
            raise UserError(unknown_family(self.model_type))
        for one in fields(self):
            if one.name in KINDS and one.name != "rope_scaling":  # which checks itself
                check_type(one.name, KINDS[one.name], getattr(self, one.name))
        if self.hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UserError(
                f"hidden_act {shown(self.hidden_act)} is not supported; supported: {known}. Choose a checkpoint with "
                "one of them"
            )
        _multiple("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        _multiple("num_attention_heads", self.num_attention_heads, "num_key_value_heads", self.num_key_value_heads)
        if self.head_dim % 2:
            raise UserError(f"head_dim = {self.head_dim} is odd; rotary embeddings need an even head size. {CORRECT}")
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise UserError(
                f"partial_rotary_factor = {self.partial_rotary_factor} in the config rotates {self.rotary_dim} of "
                f"{self.head_dim} elements of a head; needed: an even number of them. {CORRECT}"
            )
        for key in ("short_factor", "long_factor"):
            factors = getattr(self.rope_scaling, key, None)
            if factors is not None and len(factors) != self.rotary_dim // 2:
                raise UserError(
                    f"rope_scaling.{key} in the config has {len(factors)} numbers; needed: {self.rotary_dim // 2}, "
                    f"half the rotated elements of a head. {CORRECT}"
                )

    @property
    def family(self) -> Family:
        """The architecture's differences from Llama."""
        return FAMILIES[self.model_type]

    @property
    def scale(self) -> float:
        """Multiplies the scores of attention."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def rotary_dim(self) -> int:
        """The number of elements of a head that are rotated, the first ones."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def reference_dict(self) -> dict[str, Any]:
        """Return a config.json from which transformers builds this network, or an equal one of another architecture."""
        published = self.to_dict()
        stand_in = self.family.stand_in
        return published if stand_in is None else stand_in({k: v for k, v in published.items() if v is not None})

    @property
    def stream_norm_eps(self) -> float:
        """eps of the norms that read the residual stream.

        The graphs' stream is the network's, divided by embedding_multiplier (checkpoint/folded.py): RMSNorm of x / m
        with eps / m^2 is RMSNorm of x with eps.
        """
        return self.rms_norm_eps / self.embedding_multiplier**2

    @property
    def longest_context(self) -> int:
        """The number of positions that the rotary embedding was made for."""
        return longest_context(self.max_position_embeddings, self.rope_scaling)

    @property
    def qkv_bias(self) -> bool:
        """Whether the q, k and v projections have biases. The o projection has one only with attention_bias."""
        return self.attention_bias or self.family.qkv_bias

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
        hf = family.with_our_keys({**hf, "model_type": model_type_of(hf)})
        check_types(hf)
        # null means "none" for some keys, and "the default" for the others.
        hf = {key: value for key, value in hf.items() if value is not None or family.may_be_null(key)}
        values = {key: value for key, value in {**family.defaults, **hf}.items() if value is not None}
        if missing := [key for key in REQUIRED if key not in values]:
            raise UserError(f"config.json lacks {', '.join(missing)}. Use the one that was published with the model")
        known = _KNOWN | family.keys
        own_code = family.stand_in is not None
        unknown = {key: value for key, value in hf.items() if key not in known and not family.may_ignore(key, value)}
        problems = family.other_values(hf)
        problems += refusals(unknown, family.architecture, own_code)
        if problems:
            raise UserError("; ".join(problems[:MOST_KEYS]))

        found = {key: values[key] for key in _PLAIN_FIELDS if key in values}
        for key in _OF_SOME - family.keys:  # `refusals` has checked that their values are neutral
            found.pop(key, None)
        heads = found["num_attention_heads"]
        _multiple("hidden_size", found["hidden_size"], "num_attention_heads", heads)
        found.setdefault("num_key_value_heads", heads)
        found.setdefault("head_dim", found["hidden_size"] // heads)
        if family.windows is not None:
            found["sliding_window"], found["layer_types"] = family.windows(values)
        ropes = read_ropes(values, family.local_theta, "partial_rotary_factor" in family.keys, family.dynamic_rope)
        found["rope_theta"], found["rope_scaling"] = ropes.theta, ropes.scaling
        found["local_rope_theta"] = ropes.local_theta if found.get("sliding_window") else None
        found["partial_rotary_factor"] = ropes.rotated
        found |= family.read(values)
        eos = values.get("eos_token_id", ())
        found["eos_token_id"] = tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
        if found.get("pad_token_id") == -1:  # the first Llama configs use -1 for "none"
            found["pad_token_id"] = None
        if hf["model_type"] not in _RESTORED:
            found["published"] = {key: value for key, value in hf.items() if key in known}
        return cls(**found)

    def with_rope_scaling(self, rope: Mapping[str, Any]) -> LlamaConfig:
        """Return this network with another scaling of the rotary embedding, and the maximum that the scaling allows.

        In layers with a window whose rotary embedding has no scaling, nothing changes.

        Args:
            rope: the object rope_scaling of a config.json. original_max_position_embeddings is by default this
                network's, as in transformers.

        Raises UserError if `rope` is not valid.
        """
        values = {key: value for key, value in self.to_dict().items() if value is not None}
        kind = rope.get("rope_type") or rope.get("type")
        if kind in ORIGINAL_KINDS:
            given = (rope.get(ORIGINAL), values.get(ORIGINAL), self.max_position_embeddings)
            original = next(length for length in given if length is not None)
            rope = {**rope, ORIGINAL: original}
            if ORIGINAL in values:
                values[ORIGINAL] = original
        scaled = LlamaConfig.from_dict(rescaled(values, rope))
        longest = scaled.longest_context
        if scaled.rope_scaling is not None and kind == "linear":
            longest = int(longest * (scaled.rope_scaling.factor or 1.0))
        return replace(scaled, max_position_embeddings=longest)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a config.json, from which transformers 4 and 5 build the same network."""
        own = asdict(self)
        if self.model_type in _RESTORED:
            out = {key: own[key] for key in _RESTORED_FIELDS if key not in _OF_SOME or key in self.family.keys}
            out |= windows_as_hf(self.model_type, self.sliding_window, self.layer_types, self.num_hidden_layers)
            out["rope_scaling"] = self.rope_scaling.to_dict() if self.rope_scaling else None
        else:
            out = {**self.family.defaults, **self.published}
            for key in (*REQUIRED, "num_key_value_heads", "head_dim", "bos_token_id", "pad_token_id", "model_type"):
                out[key] = own[key]
            if self.family.windows is not None:
                out["sliding_window"] = self.sliding_window
        out["architectures"] = [self.family.architecture]
        eos = self.eos_token_id
        out["eos_token_id"] = None if not eos else eos[0] if len(eos) == 1 else list(eos)
        return out


_OF_SOME = frozenset().union(*(family.keys for family in FAMILIES.values()))  # keys that not every family has
_RESTORED = ("llama", "mistral", "qwen2")  # the fields of LlamaConfig restore their config.json
_NEW_FIELDS = tuple(LlamaConfig.__dataclass_fields__)
_NEW_FIELDS = _NEW_FIELDS[_NEW_FIELDS.index("attention_scale") :]
_RESTORED_FIELDS = tuple(name for name in LlamaConfig.__dataclass_fields__ if name not in _NEW_FIELDS)
_PLAIN_FIELDS = frozenset(_RESTORED_FIELDS) - {"rope_theta", "rope_scaling", "eos_token_id"}
_SHARED = {"rope_parameters", "original_max_position_embeddings"}
_KNOWN = (frozenset(_RESTORED_FIELDS) | _SHARED) - _OF_SOME


def _multiple(name: str, value: int, of_name: str, of: int) -> None:
    if value % of:
        raise UserError(f"{name} = {value} in the config must be a multiple of {of_name} = {of}. {CORRECT}")
