"""SmolLM2-135M-Instruct for Ascend, its graphs through the ONNX twin: greedy tokens as transformers has in float16.

transformers reads the same GGUF file by its own code and computes in float16, as torch does it on a CPU. The prompts
are the rows of one artifact, so 64 steps are 64 runs of each graph: a few minutes a graph.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import export_all
from smollm2 import SENTENCES, load_reference
from step_runs import ROOT
from transformers import AutoTokenizer

from exporter.onnx_run import twin_engine
from runtime.artifact import Artifact

pytestmark = pytest.mark.slow

NEW_TOKENS = 64
LENGTHS = (1, 2, 5, 8, 13, 21, 31, 32, 33, 40, 48, 56, 64, 96, 127, 129)  # with the sentences, 20 prompts
# Logits are float16 on both sides, in steps of 1/64 from 16 on, so exact ties are common and either side may break
# them its own way: 14 of the 20 were alike when this was written, and the other six left at ties or one or two steps.
ALIKE = 12
NEAR_TIE = 2 / 64  # between the reference's best logit and that of the token found, where a prompt leaves it
TARGETS = ("ascend310p", "ascend910b")  # the 310B's graph differs in how a norm is composed, of float32 operators


@pytest.fixture(scope="module")
def artifacts(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("smollm2-ascend")
    sizes = {"batch": len(LENGTHS) + len(SENTENCES), "context": 256, "buckets": [32, 128]}
    jobs = [
        {"model": smollm2_gguf, "target": target, "verify": False, "out": folder / target, **sizes}
        for target in TARGETS
    ]
    return dict(zip(TARGETS, map(Artifact.open, export_all(jobs)), strict=True))


@pytest.fixture(scope="module")
def prompts(artifacts: dict[str, Artifact]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(artifacts[TARGETS[0]].path)
    book = tokenizer((ROOT / "tests" / "data" / "alice.txt").read_text(encoding="utf-8"))["input_ids"]
    passages = [book[97 * i : 97 * i + length] for i, length in enumerate(LENGTHS)]
    return passages + [tokenizer(text)["input_ids"] for text in SENTENCES]


def greedy(artifact: Artifact, prompts: list[list[int]]) -> np.ndarray:
    """[prompts, NEW_TOKENS]: every prompt a row, past any end of sequence."""
    engine = twin_engine(artifact)
    length = np.array([len(prompt) for prompt in prompts])
    call = np.zeros((len(prompts), length.max()), np.int32)
    for row, prompt in enumerate(prompts):
        call[row, : len(prompt)] = prompt
    best = engine.forward(call, 0 * length, length).argmax(-1)
    found = [best]
    for step in range(NEW_TOKENS - 1):
        best = engine.forward(best[:, None], length + step, np.ones_like(length)).argmax(-1)
        found.append(best)
    return np.stack(found, axis=1)


@pytest.mark.parametrize("target", ["ascend310p"])
def test_greedy_tokens_are_those_of_float16(
    target: str,
    artifacts: dict[str, Artifact],
    prompts: list[list[int]],
    smollm2_gguf: Path,
) -> None:
    """Most prompts are alike for 64 tokens; where one leaves the reference, its best logits tie, or nearly."""
    found = greedy(artifacts[target], prompts)
    half = load_reference(smollm2_gguf).half()
    leaving = []
    for prompt, tokens in zip(prompts, found.tolist(), strict=True):
        with torch.no_grad():
            logits = half(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :].float().numpy()
        if (different := np.flatnonzero(logits.argmax(-1) != tokens)).size:
            row = logits[different[0]]
            leaving.append((len(prompt), int(different[0]), float(row.max() - row[tokens[different[0]]])))
    print(f"{target}: {len(prompts) - len(leaving)} of {len(prompts)} alike; (prompt, step, gap): {leaving}")
    assert len(prompts) - len(leaving) >= ALIKE, leaving
    assert all(gap <= NEAR_TIE for *_, gap in leaving), leaving


def test_the_910b_runs_the_310ps_graph(artifacts: dict[str, Artifact]) -> None:
    one, other = (artifacts[target].manifest.files() for target in ("ascend310p", "ascend910b"))
    assert [entry.sha256 for entry in one] == [entry.sha256 for entry in other]
