"""SmolLM2-135M-Instruct for the tests: the reference, the prompts, and the comparison of tokens.

transformers reads the same GGUF file with its own code, so the reference does not depend on the exporter.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from support.child import REPOSITORY

NEW_TOKENS = 64
NEAR_TIE = 1e-4  # largest difference between the reference's two best logits
# 1, lengths around each of the buckets 1, 32, 128 and 512, and three times two of the buckets.
LENGTHS = (1, 2, 31, 32, 33, 96, 127, 128, 129, 200, 384, 511, 512, 513, 700, 1536)
SENTENCES = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees Celsius because",
)


def load_reference(gguf: Path) -> LlamaForCausalLM:
    """Returns the model of a GGUF file in float32, read and dequantized by transformers."""
    config = load_gguf_checkpoint(gguf)["config"]
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    weights = load_gguf_checkpoint(gguf, return_tensors=True, model_to_load=model)["tensors"]
    model = LlamaForCausalLM(LlamaConfig(**config))
    missing = model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    assert missing.unexpected_keys == []
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    return model.eval()


def make_prompts(artifact: Path, lengths: Iterable[int] = LENGTHS) -> list[list[int]]:
    """Returns the ids of passages of the given lengths, from different places of a book, and of four short texts."""
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    book = tokenizer((REPOSITORY / "exporter" / "proof" / "alice.txt").read_text(encoding="utf-8"))["input_ids"]
    passages = [book[97 * i : 97 * i + length] for i, length in enumerate(lengths)]
    return passages + [tokenizer(text)["input_ids"] for text in SENTENCES]


def reference_logits(model: LlamaForCausalLM, prompt: list[int], found: list[int]) -> np.ndarray:
    """Returns the logits after the prompt and after each token of `found` except the last, [len(found), V]."""
    with torch.no_grad():
        return np.asarray(model(torch.tensor([prompt + found[:-1]])).logits[0, len(prompt) - 1 :].numpy())


def near_ties(model: LlamaForCausalLM, prompt: list[int], found: list[int]) -> list[str]:
    """Asserts that each token of `found` is the reference's best one or nearly ties with it; returns the near ties."""
    ties = []
    for step, (token, row) in enumerate(zip(found, reference_logits(model, prompt, found), strict=True)):
        best = int(row.argmax())
        if token != best:
            message = f"prompt of {len(prompt)}, step {step}: {token}, reference {best} by {row[best] - row[token]:.1e}"
            assert row[best] - row[token] <= NEAR_TIE, message
            ties.append(message)
    return ties


def warn_of(ties: Iterable[str]) -> None:
    """Gives a warning for each near tie."""
    for message in ties:
        warnings.warn(f"near tie: {message}", stacklevel=2)
