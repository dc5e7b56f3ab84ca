"""SmolLM2-135M-Instruct, exported for the portable target, generates the same tokens as transformers in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from edgellama.artifact.manifest import Artifact
from edgellama.exporter.onnx_twin.run import twin_engine
from support import smollm2
from support.exported import generate
from support.smollm2 import LENGTHS, NEW_TOKENS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.checkpoints import export_all

    out = tmp_path_factory.mktemp("smollm2") / "portable"
    return export_all([{"model": smollm2_gguf, "target": "portable", "out": out, "verify": False}])[0]


@pytest.fixture(scope="module")
def reference(smollm2_gguf: Path) -> LlamaForCausalLM:
    return smollm2.load_reference(smollm2_gguf)


@pytest.fixture(scope="module")
def prompts(artifact: Path) -> list[list[int]]:
    return smollm2.make_prompts(artifact)


@pytest.fixture(scope="module")
def continuations(artifact: Path, prompts: list[list[int]]) -> list[list[int]]:
    return continued(artifact, prompts)


def continued(artifact: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The greedy tokens of the runtime, which does not stop at an end of sequence."""
    calls = [
        {"input_ids": [prompt], "max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": -1}
        for prompt in prompts
    ]
    return [ids[0, len(prompt) :].tolist() for ids, prompt in zip(generate(artifact, *calls), prompts, strict=True)]


def test_the_capital_of_france(prompts: list[list[int]], continuations: list[list[int]]) -> None:
    index = len(LENGTHS)
    assert prompts[index] == [504, 3575, 282, 4649, 314]
    assert continuations[index][:9] == [7042, 30, 198, 198, 504, 2988, 314, 42, 216]


def test_greedy_tokens_are_those_of_transformers(
    reference: LlamaForCausalLM, prompts: list[list[int]], continuations: list[list[int]]
) -> None:
    assert len(prompts) == 20
    assert {len(found) for found in continuations} == {NEW_TOKENS}
    for prompt, found in zip(prompts, continuations, strict=True):
        smollm2.warn_of(smollm2.near_ties(reference, prompt, found))


def test_the_cpu_target_in_float32_gives_the_same_tokens(
    smollm2_gguf: Path, prompts: list[list[int]], continuations: list[list[int]], tmp_path: Path
) -> None:
    from support.checkpoints import export_all

    job = {"model": smollm2_gguf, "target": "cpu", "weights": "fp32", "out": tmp_path / "cpu", "verify": False}
    found = continued(export_all([job])[0], prompts)
    wrong = {len(p): (f, w) for p, f, w in zip(prompts, found, continuations, strict=True) if f != w}
    assert not wrong


def test_the_onnx_twin_gives_the_same_logits(artifact: Path, reference: LlamaForCausalLM) -> None:
    """One prompt longer than a bucket, and one decode step."""
    tokens = np.random.default_rng(0).integers(0, 49152, (1, 34), dtype=np.int32)
    engine = twin_engine(Artifact.open(artifact))
    found = [engine.forward(tokens[:, :33], np.array([0]), np.array([33]))[0].copy()]
    found.append(engine.forward(tokens[:, 33:], np.array([33]), np.array([1]))[0])
    with torch.no_grad():
        wanted = reference(torch.from_numpy(tokens.astype(np.int64))).logits[0, 32:].numpy()
    assert np.abs(np.stack(found) - wanted).max() / np.ptp(wanted) < 1e-5
