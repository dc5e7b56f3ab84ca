"""The parameters of the rotary embedding: every supported kind, and the keys of a config.json that describe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgellama.errors import UserError, shown

from .config_types import CORRECT, ROPE_KINDS, check_type
from .windows import FULL, SLIDING

# Rope kinds and their parameters: (required, optional).
ROPE_PARAMETERS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "default": (frozenset(), frozenset()),
    "linear": (frozenset({"factor"}), frozenset()),
    "dynamic": (frozenset({"factor"}), frozenset({"original_max_position_embeddings"})),
    "yarn": (
        frozenset({"factor", "original_max_position_embeddings"}),
        frozenset({"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"})
        | {"llama_4_scaling_beta"},
    ),
    "llama3": (
        frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
        frozenset(),
    ),
    "longrope": (
        frozenset({"factor", "short_factor", "long_factor", "original_max_position_embeddings"}),
        frozenset({"attention_factor"}),
    ),
    "ntk_alpha": (frozenset({"alpha"}), frozenset()),
}


ORIGINAL = "original_max_position_embeddings"
ORIGINAL_KINDS = tuple(kind for kind, (required, _) in ROPE_PARAMETERS.items() if ORIGINAL in required)


@dataclass(frozen=True)
class RopeScaling:
    """Parameters of a rope kind other than "default". A parameter that does not belong to the kind is None.

    Raises UserError for an unknown kind, a missing or surplus parameter, or a value out of range.
    """

    rope_type: str
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    alpha: float | None = None
    llama_4_scaling_beta: float | None = None

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
class Ropes:
    """The rotary embeddings of a network.

    Attributes:
        theta, scaling: those of layers without a window, or of all layers.
        local_theta: the theta of layers with a window, which have no scaling; None: they are like the others.
        rotated: the share of each head's elements that are rotated, the first ones.
    """

    theta: float
    scaling: RopeScaling | None
    local_theta: float | None = None
    rotated: float = 1.0


def longest_context(trained: int, scaling: RopeScaling | None) -> int:
    """Return the number of positions that a rotary embedding was made for.

    It is max_position_embeddings (`trained`), or factor x original_max_position_embeddings if that is more: a config
    to which somebody added yarn, as model cards recommend, often has the maximum without yarn.
    """
    if scaling is None or scaling.rope_type not in ("yarn", "llama3"):
        return trained
    return max(trained, int((scaling.factor or 1.0) * (scaling.original_max_position_embeddings or 0)))


def rescaled(values: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config.json with other rope parameters of the layers without a window.

    rope_theta and partial_rotary_factor stay unless `rope` has them.
    """
    key = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    old = values.get(key) or {}
    by_layer = bool(old.keys() & {FULL, SLIDING})
    replaced = old.get(FULL) or {} if by_layer else old
    kept = {name: replaced[name] for name in ("rope_theta", "partial_rotary_factor") if name in replaced}
    new = {**kept, **rope}
    others = {name: value for name, value in values.items() if name not in ("rope_scaling", "rope_parameters")}
    return {**others, key: {**old, FULL: new} if by_layer else new}


def read_ropes(values: Mapping[str, Any], local: tuple[str, float] | None, partial: bool, dynamic: str) -> Ropes:
    """Read `rope_scaling` + `rope_theta` (transformers 4) or `rope_parameters` (5).

    Args:
        values: of the config.json.
        local: the key and the default of the theta of layers with a window; see family.Family.local_theta.
        partial: the architecture may rotate a part of each head.
        dynamic: what the rope type "dynamic" means with the parameter alpha: "ntk_alpha", or "dynamic" (an error).

    Raises UserError for an unknown kind, and for missing, surplus or wrong parameters.
    """
    main, windowed = _rope_parameters(values, local)
    theta, scaling, rotated = _read_rope(main, values, dynamic)
    if rotated != 1 and not partial:
        raise UserError(
            f"partial_rotary_factor = {rotated} is not supported; this architecture rotates whole heads (1.0). Choose "
            "a checkpoint without it"
        )
    local_theta = None
    if local is not None:
        key, default = local
        local_theta = values.get(key, default) if key else theta
        if windowed is not None:
            local_theta, local_scaling, _ = _read_rope(windowed, values, dynamic)
            if local_scaling is not None:
                raise UserError(
                    f"rope_parameters in the config: layers with a window take only the rope type 'default'. {CORRECT}"
                )
        if local_theta == theta and scaling is None:
            local_theta = None
    return Ropes(theta, scaling, local_theta, rotated)


def _rope_parameters(values: Mapping[str, Any], local: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the parameters of layers without a window, and those of layers with one, if the config has both."""
    found, windowed = [], None
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key)
        if not rope:
            continue
        if isinstance(rope, dict) and local is not None and rope.keys() & {FULL, SLIDING}:
            windowed = rope.get(SLIDING)
            rope = rope.get(FULL) or {}
        for part in (rope, windowed if windowed is not None else {}):
            if not isinstance(part, dict):
                raise UserError(f"{key} = {shown(part)} in the config must be an object of rope parameters. {CORRECT}")
        found.append(_named(rope, values))
    if len(found) == 2 and found[0] != found[1]:
        raise UserError(
            f"config.json has rope_scaling {shown(values['rope_scaling'], 300)} and rope_parameters "
            f"{shown(values['rope_parameters'], 300)}, which differ. Remove the wrong one"
        )
    return found[0] if found else _named({}, values), None if windowed is None else _named(windowed, values)


def _named(rope: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return rope parameters with rope_type and rope_theta. "type" is an older name of "rope_type"; some have both."""
    rope = dict(rope)
    kind = rope.pop("type", None)
    rope["rope_type"] = rope.get("rope_type") or kind or "default"
    rope.setdefault("rope_theta", values.get("rope_theta", 10000.0))
    return rope


def _read_rope(
    parameters: Mapping[str, Any], values: Mapping[str, Any], dynamic: str
) -> tuple[Any, RopeScaling | None, Any]:
    """Return (theta, scaling, the share of a head that is rotated)."""
    rope = {key: value for key, value in parameters.items() if value is not None}
    kind, theta = rope["rope_type"], rope.pop("rope_theta")
    partial = rope.pop("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
    if kind == "dynamic" and dynamic == "ntk_alpha" and rope.get("alpha"):
        # The other parameters of such a config have no effect in transformers either.
        kind, rope = "ntk_alpha", {"rope_type": "ntk_alpha", "alpha": rope["alpha"]}
    if kind == "su":  # the first name of longrope, in Phi-3
        kind = rope["rope_type"] = "longrope"
    if kind == "yarn" and rope.get("max_position_embeddings") == values["max_position_embeddings"]:
        del rope["max_position_embeddings"]  # Ministral 3 repeats it
    if not isinstance(kind, str) or kind not in ROPE_PARAMETERS:
        raise UserError(_unknown_rope_type(kind))
    required, optional = ROPE_PARAMETERS[kind]
    if "original_max_position_embeddings" in required:
        # As in transformers: the top-level value takes precedence, and the context length is the default.
        given = (values.get(ORIGINAL), rope.get(ORIGINAL), values["max_position_embeddings"])
        rope[ORIGINAL] = next(length for length in given if length is not None)
    if kind in ("yarn", "longrope") and "factor" not in rope and rope[ORIGINAL]:  # 0 is refused below
        rope["factor"] = values["max_position_embeddings"] / rope["original_max_position_embeddings"]
    if unknown := sorted(rope.keys() - required - optional - {"rope_type"}):
        raise UserError(
            f"rope type {kind!r} does not take {', '.join(f'{key[:40]} = {shown(rope[key])}' for key in unknown[:5])}; "
            f"it takes {', '.join(sorted(required | optional)) or 'nothing but rope_theta'}. {CORRECT}"
        )
    if missing := sorted(required - rope.keys()):
        raise UserError(_lacks(kind, missing))
    for key in ("short_factor", "long_factor"):
        if key in rope:
            rope[key] = tuple(rope[key])
    return theta, None if kind == "default" else RopeScaling(**rope), partial


def _lacks(kind: str, missing: list[str]) -> str:
    return f"rope type {kind!r} needs {', '.join(missing)}. Add it to rope_scaling in config.json"


def _unknown_rope_type(kind: Any) -> str:
    known = ", ".join(name for name in ROPE_PARAMETERS if name != "ntk_alpha")
    return f"rope type {shown(kind)} is not supported; supported: {known}. Choose a checkpoint with one of them"
