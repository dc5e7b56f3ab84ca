"""The toy of tiny.py as a model whose tokens are words (w0 w1 ...), and its expected greedy output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models

from edgellama.artifact.manifest import Artifact
from edgellama.engine.engine import Engine
from edgellama.model import LlamaForCausalLM
from support.tiny import VOCAB, Weights, artifact, numpy_graphs, whole_text_logits

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17], [20, 21], [30, 31, 32, 33]]


def model_of(opened: Artifact) -> LlamaForCausalLM:
    """Returns the model of an artifact of the toy, which numpy computes instead of MindSpore Lite."""
    return LlamaForCausalLM(opened, Engine(opened, build=numpy_graphs(opened)))


def load(folder: Path, **changes: Any) -> LlamaForCausalLM:
    """Writes the toy's artifact into `folder` and loads it; `changes` are the arguments of `tiny.manifest`."""
    opened = artifact(folder, **changes)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.decoder = decoders.Fuse()
    words.save(str(folder / "tokenizer.json"))
    return model_of(opened)


def continuation(prompt: list[int], count: int, context: int = 64) -> list[int]:
    """Returns the greedy continuation, computed by passes over the whole text: no cache, no batch, no engine."""
    weights = Weights(context)
    text = list(prompt)
    for _ in range(count):
        text.append(int(whole_text_logits(weights, text)[-1].argmax()))
    return text[len(prompt) :]


def padded(prompts: list[list[int]], side: str, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns input ids and attention mask, [B, S] each, padded with `pad` on "left" or "right"."""
    width = max(map(len, prompts))
    fill = [[pad] * (width - len(p)) for p in prompts]
    rows = [f + p if side == "left" else p + f for p, f in zip(prompts, fill, strict=True)]
    mask = [[0] * len(f) + [1] * len(p) for p, f in zip(prompts, fill, strict=True)]
    return np.array(rows), np.array([m if side == "left" else m[::-1] for m in mask])


def computed(model: LlamaForCausalLM, call: Callable[[], Any]) -> list[list[int]]:
    """Runs `call` and returns how many tokens of each row the engine computed, pass by pass."""
    counts: list[list[int]] = []
    forward = type(model.engine).forward

    def counting(tokens: np.ndarray, start: np.ndarray, length: np.ndarray, *rest: Any, **named: Any) -> np.ndarray:
        counts.append(np.asarray(length).tolist())
        return forward(model.engine, tokens, start, length, *rest, **named)

    model.engine.forward = counting  # type: ignore[method-assign]
    try:
        call()
    finally:
        del model.engine.forward
    return counts
