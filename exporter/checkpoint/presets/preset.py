"""What a preset is: a model with a short name. The other files of this folder have them, a publisher or two in each.

The configs come from the published config.json files, without the keys that do not describe the network. With them a
model can be traced without its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...network.config import LlamaConfig


@dataclass(frozen=True)
class RegistryFile:
    """A GGUF file in a Python package, for machines that can reach a package registry but not the hub."""

    package: str
    version: str
    member: str  # path inside the wheel
    sha256: str
    bytes: int


APACHE, MIT = "Apache-2.0", "MIT"


@dataclass(frozen=True)
class Preset:
    """A model with a short name.

    Attributes:
        name: lower case, as MODEL names it.
        hub_id, licence: of its repository; the licence with what restricts its use most.
        hf_config: its config.json.
        registry_file: where the weights are outside the hub.
    """

    name: str
    hub_id: str
    licence: str
    hf_config: dict[str, Any]
    registry_file: RegistryFile | None = None

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig.from_dict(self.hf_config)


def network(
    hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int, context: int, **rest: Any
) -> dict[str, Any]:
    """Return the config.json of a Llama of these sizes, with other keys from `rest`."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **rest,
    }
