"""Mistral. The Ministral 3 repositories hold multimodal models, so they are not presets."""

from __future__ import annotations

from typing import Any

from .preset import APACHE, Preset, network


def _mistral_7b(vocabulary: int, theta: float, window: int | None) -> dict[str, Any]:
    sizes = network(4096, 14336, 32, 32, 8, vocabulary, 32768, rope_theta=theta, bos_token_id=1, eos_token_id=2)
    return sizes | {"model_type": "mistral", "sliding_window": window}


_MISTRAL_7B = {
    "v0.1": _mistral_7b(32000, 10000.0, 4096),
    "v0.2": _mistral_7b(32000, 1000000.0, None),
    "v0.3": _mistral_7b(32768, 1000000.0, None),
}
_NEMO = network(5120, 14336, 40, 32, 8, 131072, 131072, rope_theta=1000000.0, bos_token_id=1, eos_token_id=2) | {
    **{"model_type": "mistral", "head_dim": 128, "sliding_window": None}
}

MISTRALS = (
    *(
        Preset(f"mistral-7b-instruct-{version}", f"mistralai/Mistral-7B-Instruct-{version}", APACHE, config)
        for version, config in _MISTRAL_7B.items()
    ),
    Preset("mistral-nemo-instruct-2407", "mistralai/Mistral-Nemo-Instruct-2407", APACHE, _NEMO),
)
