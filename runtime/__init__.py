"""The thin runtime: loads an exported artifact through MindSpore Lite and generates text.

from edgellama import LlamaForCausalLM
model = LlamaForCausalLM.from_pretrained("artifacts/smollm2-135m-instruct-portable-fp32")
model.generate(input_ids, max_new_tokens=30, do_sample=False)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversation.chat import Chat
    from .errors import UserError
    from .generation.config import GenerationConfig
    from .hf_keywords import set_seed
    from .model import AutoModelForCausalLM, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM
    from .pipelines import pipeline
    from .text.tokenizer import Tokenizer

__all__ = [
    "AutoModelForCausalLM",
    "Chat",
    "GenerationConfig",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Tokenizer",
    "UserError",
    "pipeline",
    "set_seed",
]

__version__ = "0.2.0"

_HOME = {
    "AutoModelForCausalLM": "edgellama.model",
    "Chat": "edgellama.conversation.chat",
    "GenerationConfig": "edgellama.generation.config",
    "LlamaForCausalLM": "edgellama.model",
    "MistralForCausalLM": "edgellama.model",
    "Qwen2ForCausalLM": "edgellama.model",
    "Tokenizer": "edgellama.text.tokenizer",
    "UserError": "edgellama.errors",
    "pipeline": "edgellama.pipelines",
    "set_seed": "edgellama.hf_keywords",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import edgellama` itself costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'edgellama' has no attribute {name!r}")
    if name != "UserError":
        importlib.import_module("edgellama.instructions").check_cpu()
    return getattr(importlib.import_module(_HOME[name]), name)


if __name__ == "runtime":  # imported from a checkout by the folder's name: checkout.py
    import runpy
    from pathlib import Path

    runpy.run_path(str(Path(__file__).with_name("checkout.py")))["use_folder_name"](__name__)
