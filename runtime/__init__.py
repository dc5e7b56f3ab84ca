"""The thin runtime: loads an exported artifact through MindSpore Lite and generates text.

from runtime import LlamaForCausalLM
model = LlamaForCausalLM.from_pretrained("artifacts/smollm2-135m-instruct-portable-fp32")
model.generate(input_ids, max_new_tokens=30, do_sample=False)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.conversation.chat import Chat
    from runtime.errors import UserError
    from runtime.generation.config import GenerationConfig
    from runtime.model import AutoModelForCausalLM, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM
    from runtime.pipelines import pipeline
    from runtime.text.tokenizer import Tokenizer

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
]

_HOME = {
    "AutoModelForCausalLM": "runtime.model",
    "Chat": "runtime.conversation.chat",
    "GenerationConfig": "runtime.generation.config",
    "LlamaForCausalLM": "runtime.model",
    "MistralForCausalLM": "runtime.model",
    "Qwen2ForCausalLM": "runtime.model",
    "Tokenizer": "runtime.text.tokenizer",
    "UserError": "runtime.errors",
    "pipeline": "runtime.pipelines",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import runtime` itself costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
