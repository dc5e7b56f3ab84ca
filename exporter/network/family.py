"""The differences between the architectures of the Llama family: names, biases, sliding windows, config defaults.

Defaults are those that transformers uses for keys that a config.json lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgellama.errors import UserError, shown

from .config_types import CORRECT

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Family:
    """One architecture. keys: the keys of its config.json that not every architecture has."""

    architecture: str
    keys: frozenset[str]
    qkv_bias: bool = False  # q, k and v always have biases; Llama's config decides with attention_bias instead
    defaults: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama": Family("LlamaForCausalLM", frozenset({"attention_bias", "mlp_bias"})),
    "mistral": Family(
        "MistralForCausalLM",
        frozenset({"sliding_window"}),
        defaults={"sliding_window": 4096, "num_key_value_heads": 8, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}),
        qkv_bias=True,
        defaults={"sliding_window": 4096, "num_key_value_heads": 32, "max_window_layers": 28},
    ),
}


def family_of(hf: Mapping[str, Any]) -> Family:
    """Return the architecture that a config.json names. Raises UserError if it does not belong to the family."""
    kind = hf.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise UserError(unknown_family(kind))
    for name in hf.get("architectures") or ():
        if name.lower() != family.architecture.lower():
            raise UserError(
                f"architecture {shown(name)} is not supported; needed: {family.architecture!r}. Choose a "
                "checkpoint of it"
            )
    return family


def unknown_family(kind: Any) -> str:
    """Return the message for a model_type that is not one of FAMILIES."""
    known = ", ".join(map(repr, FAMILIES))
    return f"model_type {shown(kind)} is not supported; this release exports {known}. Choose a model of one of them"


def read_windows(values: Mapping[str, Any]) -> tuple[int | None, tuple[str, ...]]:
    """Return (sliding_window, the kind of each layer) of a config.json; (None, ()) if no layer has a window.

    Mistral's window applies to every layer. Qwen2's window applies only if use_sliding_window is true: to the layers
    that layer_types names, or, without layer_types, to the layers from max_window_layers on.
    """
    layers, window, kinds = values["num_hidden_layers"], values.get("sliding_window"), None
    first = 0
    if values["model_type"] == "qwen2":
        first, kinds = values["max_window_layers"], values.get("layer_types")
        window = window if values.get("use_sliding_window", False) else None
    if kinds is None and window is not None:
        kinds = [SLIDING if layer >= first else FULL for layer in range(layers)]
    if kinds is None:
        return None, ()
    if len(kinds) != layers or not set(kinds) <= {FULL, SLIDING}:
        raise UserError(
            f"layer_types = {shown(kinds, 200)} in the config must name {FULL!r} or {SLIDING!r} for each of {layers} "
            f"layers. {CORRECT}"
        )
    if SLIDING not in kinds:
        return None, ()
    if window is None:
        raise UserError(
            f"layer_types in the config names {SLIDING!r}, but sliding_window is not set or not in use. {CORRECT}"
        )
    return window, tuple(kinds)


def windows_as_hf(model_type: str, window: int | None, kinds: tuple[str, ...], layers: int) -> dict[str, Any]:
    """Return the config.json keys from which `read_windows` reads this window and these kinds."""
    if model_type != "qwen2":
        return {"sliding_window": window} if model_type == "mistral" else {}
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        # For readers that do not know layer_types.
        "max_window_layers": kinds.index(SLIDING) if kinds else layers,
        "layer_types": list(kinds) or [FULL] * layers,
    }
