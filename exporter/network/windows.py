"""Which layers have a sliding window: read from the keys of a config.json, in the way of each architecture.

A reader returns (sliding_window, the kind of each layer), or (None, ()) if no layer has a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgellama.errors import UserError, shown

from .config_types import CORRECT

FULL, SLIDING = "full_attention", "sliding_attention"
Windows = tuple[int | None, tuple[str, ...]]


def mistral_windows(values: Mapping[str, Any]) -> Windows:
    """The window applies to every layer."""
    window = values.get("sliding_window")
    return checked_windows(values, window, None if window is None else [SLIDING] * values["num_hidden_layers"])


def qwen_windows(values: Mapping[str, Any]) -> Windows:
    """The window applies only if use_sliding_window is true.

    It applies to the layers that layer_types names, or, without layer_types, to the layers from max_window_layers on.
    """
    first, kinds = values["max_window_layers"], values.get("layer_types")
    window = values.get("sliding_window") if values.get("use_sliding_window", False) else None
    if kinds is None and window is not None:
        kinds = [SLIDING if layer >= first else FULL for layer in range(values["num_hidden_layers"])]
    return checked_windows(values, window, kinds)


def smollm3_windows(values: Mapping[str, Any]) -> Windows:
    """The window applies only if use_sliding_window is true, and only with layer_types."""
    window = values.get("sliding_window") if values.get("use_sliding_window", False) else None
    if window is not None and "layer_types" not in values:
        raise UserError(
            f"use_sliding_window in the config needs layer_types, which names the layers of the window. {CORRECT}"
        )
    return checked_windows(values, window, values.get("layer_types"))


def every_nth_is_full(default: int) -> Callable[[Mapping[str, Any]], Windows]:
    """Return a reader: every layer has the window, except the nth of each group.

    n is sliding_window_pattern or `default`. layer_types takes precedence. A pattern in letters, such as LLLG, has one
    letter for each layer of a group: L for a layer with the window.
    """

    def read(values: Mapping[str, Any]) -> Windows:
        window, kinds = values.get("sliding_window"), values.get("layer_types")
        if window is None:
            return checked_windows(values, None, kinds)
        pattern, layers = values.get("sliding_window_pattern", default), range(values["num_hidden_layers"])
        if kinds is None and isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
            kinds = [SLIDING if pattern[layer % len(pattern)] == "L" else FULL for layer in layers]
        elif kinds is None:
            if isinstance(pattern, str) or pattern == 0:
                raise UserError(
                    f"sliding_window_pattern = {shown(pattern)} in the config must be an integer above 0, or the "
                    f"letters L and G. {CORRECT}"
                )
            kinds = [SLIDING if (layer + 1) % pattern else FULL for layer in layers]
        return checked_windows(values, window, kinds)

    return read


def checked_windows(values: Mapping[str, Any], window: int | None, kinds: Any) -> Windows:
    """Return (window, kinds) as a reader returns them. Raises UserError if they contradict each other."""
    layers = values["num_hidden_layers"]
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
    """Return the config.json keys from which the reader of Mistral or Qwen2 reads this window and these kinds."""
    if model_type != "qwen2":
        return {"sliding_window": window} if model_type == "mistral" else {}
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        # For readers that do not know layer_types.
        "max_window_layers": kinds.index(SLIDING) if kinds else layers,
        "layer_types": list(kinds) or [FULL] * layers,
    }
