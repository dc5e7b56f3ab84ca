"""SmolLM2-135M-Instruct in padded batches: greedy and beam search give the tokens of transformers for single prompts.

20 prompts of mixed lengths, 64 tokens each, in batches of 1, of 3 (padded on the right) and of 8 (on the left).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from support import smollm2
from support.checkpoints import export_all
from support.exported import generate
from support.smollm2 import NEAR_TIE, NEW_TOKENS
from support.toy_model import padded

pytestmark = pytest.mark.slow

PAD = 2  # the model's pad token and end of text; the mask marks the padding
BEAMS = 4
# For cases with a pass of several rows for each token, or with a graph of built-in operators.
SHORT_LENGTHS = (1, 2, 3, 5, 9, 17, 31, 32, 33, 40, 64, 80, 96, 127, 128, 129)
RUNS = [(1, "left"), (3, "right"), (8, "left")]  # a single prompt has no padding


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


@pytest.fixture(scope="module")
def compared() -> set[tuple[int, ...]]:
    """The texts that are already compared with the reference; some of the runs produce the same texts."""
    return set()


def mixed(prompts: list[list[int]]) -> list[list[int]]:
    """The prompts in an order that puts long and short ones next to each other."""
    return [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))]


def continue_all(artifact: Path, prompts: list[list[int]], size: int, side: str, **settings: Any) -> list[list[int]]:
    """Returns the new tokens of each prompt, generated in batches of `size`."""
    batches = [padded(prompts[at : at + size], side, PAD) for at in range(0, len(prompts), size)]
    settings = {"max_new_tokens": NEW_TOKENS, **settings}
    found = generate(artifact, *({"input_ids": ids, "attention_mask": mask, **settings} for ids, mask in batches))
    return [row[ids.shape[1] :].tolist() for (ids, _), rows in zip(batches, found, strict=True) for row in rows]


@pytest.mark.parametrize(("size", "side"), RUNS)
def test_greedy(size: int, side: str, artifacts: dict[str, Path], reference: LlamaForCausalLM, compared: set) -> None:
    check_greedy(artifacts["cpu"], smollm2.LENGTHS, size, side, reference, compared)


def test_greedy_of_the_portable_graph(artifacts: dict[str, Path], reference: LlamaForCausalLM, compared: set) -> None:
    check_greedy(artifacts["portable"], SHORT_LENGTHS, 3, "right", reference, compared)


def check_greedy(
    artifact: Path,
    lengths: Sequence[int],
    size: int,
    side: str,
    reference: LlamaForCausalLM,
    compared: set[tuple[int, ...]],
) -> None:
    prompts = mixed(smollm2.make_prompts(artifact, lengths))
    assert len(prompts) == 20
    found = continue_all(artifact, prompts, size, side, do_sample=False, eos_token_id=-1, pad_token_id=PAD)
    for prompt, new in zip(prompts, found, strict=True):
        assert len(new) == NEW_TOKENS
        if (*prompt, *new) not in compared:
            smollm2.warn_of(smollm2.near_ties(reference, prompt, new))
            compared.add((*prompt, *new))


@pytest.fixture(scope="module")
def best(artifacts: dict[str, Path], reference: LlamaForCausalLM) -> list[tuple[list[int], list[int]]]:
    """Each prompt and the continuation that transformers' beam search finds for it alone; it may end early."""
    prompts = mixed(smollm2.make_prompts(artifacts["cpu"], SHORT_LENGTHS))
    assert len(prompts) == 20
    found = []
    for prompt in prompts:
        with torch.no_grad():
            ids = reference.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=NEW_TOKENS,
                num_beams=BEAMS,
                do_sample=False,
                eos_token_id=PAD,
                pad_token_id=PAD,
            )
        found.append((prompt, whole(ids[0, len(prompt) :].tolist())))
    return found


def whole(new: list[int]) -> list[int]:
    """Returns the tokens up to the end of text, without padding."""
    return new[: new.index(PAD) + 1] if PAD in new else new


def score(model: LlamaForCausalLM, prompt: list[int], new: list[int]) -> float:
    """Returns the score of a text in beam search: the mean log-probability of its tokens."""
    logits = torch.from_numpy(smollm2.reference_logits(model, prompt, new)).double()
    return float(torch.log_softmax(logits, -1)[torch.arange(len(new)), torch.tensor(new)].mean())


@pytest.mark.parametrize(("size", "side"), RUNS)
def test_beam_search(
    size: int,
    side: str,
    artifacts: dict[str, Path],
    reference: LlamaForCausalLM,
    best: list[tuple[list[int], list[int]]],
) -> None:
    """The texts are the same, or the reference's score differs by less than a near tie, which gives a warning."""
    prompts = [prompt for prompt, _ in best]
    settings = {"num_beams": BEAMS, "do_sample": False, "eos_token_id": PAD, "pad_token_id": PAD}
    found = continue_all(artifacts["cpu"], prompts, size, side, **settings)
    for (prompt, theirs), new in zip(best, found, strict=True):
        ours = whole(new)
        if ours != theirs:
            gap = score(reference, prompt, theirs) - score(reference, prompt, ours)
            message = f"prompt of {len(prompt)}: another text, {gap:.1e} below transformers' in mean log-probability"
            assert abs(gap) <= NEAR_TIE, message
            smollm2.warn_of([message])
