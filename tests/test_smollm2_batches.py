"""SmolLM2-135M-Instruct in padded batches: greedy, token for token what transformers says of each alone.

20 prompts of mixed lengths, 64 tokens each, in batches of 1, 3 and 8, padded on the left and on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import smollm2
from checkpoints import export_all
from exported import generate
from smollm2 import NEW_TOKENS
from transformers import LlamaForCausalLM

pytestmark = pytest.mark.slow

PAD = 2  # the model's pad and end of text; the mask says where it is padding
RUNS = [(size, side) for size in (1, 3, 8) for side in ("left", "right")]


@pytest.fixture(scope="module")
def artifacts(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("smollm2")
    common = {"model": smollm2_gguf, "weights": "fp32", "verify": False}
    jobs = {"cpu": {"target": "cpu", "batch": 8}, "portable": {"target": "portable", "batch": 3}}
    made = export_all([{**common, **job, "out": folder / name} for name, job in jobs.items()])
    return dict(zip(jobs, made, strict=True))


@pytest.fixture(scope="module")
def reference(smollm2_gguf: Path) -> LlamaForCausalLM:
    return smollm2.load_reference(smollm2_gguf)


def mixed(prompts: list[list[int]]) -> list[list[int]]:
    """In an order that puts long and short ones side by side."""
    return [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))]


def padded(prompts: Sequence[list[int]], side: str) -> dict[str, np.ndarray]:
    width = max(map(len, prompts))
    ids = np.full((len(prompts), width), PAD)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, place], mask[row, place] = prompt, 1
    return {"input_ids": ids, "attention_mask": mask}


def continue_all(artifact: Path, prompts: list[list[int]], size: int, side: str, **settings: Any) -> list[list[int]]:
    """Each prompt's new tokens, generated in batches of `size`."""
    batches = [padded(prompts[at : at + size], side) for at in range(0, len(prompts), size)]
    found = generate(artifact, *({**batch, "max_new_tokens": NEW_TOKENS, **settings} for batch in batches))
    return [
        row[batch["input_ids"].shape[1] :].tolist() for batch, ids in zip(batches, found, strict=True) for row in ids
    ]


@pytest.mark.parametrize(("size", "side"), RUNS)
def test_greedy(size: int, side: str, artifacts: dict[str, Path], reference: LlamaForCausalLM) -> None:
    hold_greedy(artifacts["cpu"], size, side, reference)


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_of_the_portable_graph(side: str, artifacts: dict[str, Path], reference: LlamaForCausalLM) -> None:
    hold_greedy(artifacts["portable"], 3, side, reference)


def hold_greedy(artifact: Path, size: int, side: str, reference: LlamaForCausalLM) -> None:
    prompts = mixed(smollm2.make_prompts(artifact))
    assert len(prompts) == 20
    found = continue_all(artifact, prompts, size, side, do_sample=False, eos_token_id=-1, pad_token_id=PAD)
    for prompt, new in zip(prompts, found, strict=True):
        assert len(new) == NEW_TOKENS
        smollm2.tell(smollm2.near_ties(reference, prompt, new))
