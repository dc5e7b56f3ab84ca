"""One small random model twice: exported, and in transformers. For tests of what scripts do with either."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM as TransformersModel

from edgellama.model import LlamaForCausalLM
from support.checkpoints import export_all
from support.exported import chat_checkpoint, reference, scratch

ROWS, CONTEXT = 5, 320  # guides search with up to 5 beams


@functools.cache
def pair_artifact() -> Path:
    """Returns the artifact of `chat_checkpoint`, all in float32, with ROWS rows."""
    out = scratch() / "pair"
    formats: dict[str, Any] = {"target": "cpu", "weights": "fp32", "cache": "float32"}
    sizes = {"batch": ROWS, "context": CONTEXT, "buckets": (8, 32)}
    export_all([{"model": chat_checkpoint(), "out": out, **formats, **sizes}])
    return out


@functools.cache
def pair() -> tuple[LlamaForCausalLM, TransformersModel]:
    """Returns the exported model and transformers' model."""
    return LlamaForCausalLM.from_pretrained(pair_artifact()), reference()
