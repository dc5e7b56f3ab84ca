"""Scores and embeddings against transformers' log-likelihoods and hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgellama import LlamaForCausalLM
from edgellama.errors import UserError
from support.exported import CONTEXT, export_tiny, reference


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(export_tiny("cpu", chat=True), threads=2)


def their_logprobs(ids: list[int], first: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the log-probabilities of ids[first:], and whether each was the likeliest."""
    with torch.no_grad():
        logits = reference()(torch.tensor([ids])).logits[0]
    logprobs = torch.log_softmax(logits.double(), -1)[first - 1 : len(ids) - 1]
    wanted = torch.tensor(ids[first:])
    return logprobs[torch.arange(len(wanted)), wanted].numpy(), (logprobs.argmax(-1) == wanted).numpy()


def items(model: LlamaForCausalLM, count: int) -> list[tuple[list[int], list[int]]]:
    """Returns random pairs of ids; groups share their prompt, others share a beginning, lengths vary."""
    rng = np.random.default_rng(0)
    found = []
    prompts = [rng.integers(0, model.engine.vocab_size, n).tolist() for n in (1, 2, 5, 17, 30, 40)]
    prompts += [prompts[-1][:20] + prompt for prompt in prompts[:4]]
    for index in range(count):
        prompt = prompts[index % len(prompts)]
        found.append((prompt, rng.integers(0, model.engine.vocab_size, 1 + index % 20).tolist()))
    return found


def test_scores_are_transformers_log_likelihoods(model: LlamaForCausalLM) -> None:
    pairs = items(model, 200)
    scores = model.score([prompt for prompt, _ in pairs], [continuation for _, continuation in pairs])
    for (prompt, continuation), score in zip(pairs, scores, strict=True):
        logprobs, greedy = their_logprobs(prompt + continuation, len(prompt))
        np.testing.assert_allclose(score.logprobs, logprobs, rtol=0, atol=1e-4)
        assert score.sum == pytest.approx(logprobs.sum(), abs=1e-4 * len(logprobs))
        assert score.greedy.tolist() == greedy.tolist()
        assert score.ids.tolist() == continuation


def test_greedy_continuations_are_greedy(model: LlamaForCausalLM) -> None:
    prompt = model.tokenizer.encode("The sky")
    new = model.generate([prompt], max_new_tokens=6, eos_token_id=[])[0, len(prompt) :].tolist()
    right, wrong = model.score([prompt, prompt], [new, [*new[:-1], (new[-1] + 1) % model.engine.vocab_size]])
    assert right.is_greedy and not wrong.is_greedy
    assert right.sum > wrong.sum


def test_a_common_beginning_is_computed_once(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    whole = model.engine.hidden

    def counted(tokens: Any, start: Any, length: Any, *rest: Any) -> Any:
        computed.append(int(np.sum(length)))
        return whole(tokens, start, length, *rest)

    monkeypatch.setattr(model.engine, "hidden", counted)
    model.forget()
    prompt = list(range(3, 43))
    model.score([prompt] * 20, [[index, 7] for index in range(20)])
    alone = 20 * (len(prompt) + 1)
    assert sum(computed) < alone / 5


def test_texts_are_encoded_together(model: LlamaForCausalLM) -> None:
    """A space at the end of the prompt belongs to the continuation; one prompt serves several continuations."""
    encode = model.tokenizer.encode
    prompt, answers = "Is the sky blue? ", ["yes", "no, it is grey"]
    for answer, score in zip(answers, model.score(prompt, answers), strict=True):
        whole, before = encode(prompt + answer), encode(prompt.rstrip())
        assert score.ids.tolist() == whole[len(before) :]
        np.testing.assert_allclose(score.logprobs, their_logprobs(whole, len(before))[0], rtol=0, atol=1e-4)
    ids = model.score([encode("The sky")], [" is"])[0].ids
    assert ids.tolist() == encode(" is", add_special_tokens=False)


def test_an_empty_prompt_begins_with_bos(model: LlamaForCausalLM) -> None:
    score = model.score("", "The sky is blue")[0]
    bos = model.config.bos_token_id
    ids = model.tokenizer.encode("The sky is blue", add_special_tokens=False)
    assert score.ids.tolist() == ids
    np.testing.assert_allclose(score.logprobs, their_logprobs([bos, *ids], 1)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_are_pooled_hidden_states(model: LlamaForCausalLM, pooling: str, normalize: bool) -> None:
    texts = ["The sky is blue.", "no", "a longer text " * 3, "x"]
    found = model.embed(texts, pooling=pooling, normalize=normalize)
    assert found.dtype == np.float32 and found.shape == (4, reference().config.hidden_size)
    for text, embedding in zip(texts, found, strict=True):
        with torch.no_grad():
            states = reference().model(torch.tensor([model.tokenizer.encode(text)])).last_hidden_state[0].numpy()
        want = {"last": states[-1], "mean": states.mean(0), "cls": states[0]}[pooling]
        want = want / np.linalg.norm(want) if normalize else want
        np.testing.assert_allclose(embedding, want, rtol=0, atol=1e-5)
    assert model.embed("no", pooling=pooling).shape == (1, found.shape[1])


def test_texts_may_fill_the_context(model: LlamaForCausalLM) -> None:
    """The last token of a continuation needs no place in the cache."""
    context = model.engine.context
    assert context >= CONTEXT
    score = model.score([[5]], [[6] * context])[0]
    assert len(score.logprobs) == context
    assert model.embed([[5] * context]).shape[0] == 1
    with pytest.raises(UserError, match=rf"{context + 1:,} tokens; this artifact holds {context:,} .*CONTEXT="):
        model.score([[5]], [[6] * (context + 1)])
    with pytest.raises(UserError, match="CONTEXT="):
        model.embed([[5] * (context + 1)])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model.score(["a"], ["b", "c"]), "1 prompts and 2 continuations"),
        (lambda model: model.score("a", [""]), "no tokens"),
        (lambda model: model.score([[1]], [[10**6]]), "1000000"),
        (lambda model: model.embed([]), "at least one text"),
        (lambda model: model.embed([[]]), "no tokens"),
        (lambda model: model.embed("a", pooling="max"), "pooling is 'max'; needed: one of last, mean, cls"),
    ],
)
def test_what_is_refused(model: LlamaForCausalLM, call: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call(model)


def test_other_targets_are_refused(tiny_artifact: Path) -> None:
    portable = LlamaForCausalLM.from_pretrained(tiny_artifact)
    for call in (lambda: portable.score([[1]], [[2]]), lambda: portable.embed([[1]])):
        with pytest.raises(UserError, match=r"portable.*TARGET=cpu"):
            call()
