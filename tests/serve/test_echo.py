"""`echo` with `logprobs`: the log-probabilities of prompts, against transformers'."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
import torch

from edgellama import LlamaForCausalLM
from edgellama.backend.cpu_head import CpuHead
from edgellama.generation.config import GenerationConfig
from edgellama.serve.scheduler import Scheduler
from edgellama.serve.sequence import Echo, SequenceEvent, ServedSequence
from edgellama.serve.texts.echo import PromptLogprobs, echoed
from edgellama.text.tokenizer import Tokenizer
from support.exported import export_tiny, reference
from support.toy_tokenizers import BYTE_LEVEL

PROMPTS = ["a", "The sky is blue.", "é🙂 x", "the the the the the the the the the the end of it"]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(export_tiny("cpu", chat=True), threads=1)


def their_logprobs(ids: list[int]) -> np.ndarray:
    """Returns the log-probabilities [n, V] of the token after each of these."""
    with torch.no_grad():
        return np.asarray(torch.log_softmax(reference()(torch.tensor([ids])).logits[0].double(), -1))


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("as_ids", [False, True])
def test_the_prompt_has_transformers_log_probabilities(
    api: openai.OpenAI, name: str, model: LlamaForCausalLM, as_ids: bool, count: int
) -> None:
    prompts = [model.tokenizer.encode(prompt) for prompt in PROMPTS]
    given: Any = prompts if as_ids else PROMPTS
    done = api.completions.create(model=name, prompt=given, max_tokens=count, temperature=0, echo=True, logprobs=3)
    assert done.usage is not None and done.usage.completion_tokens == count * len(PROMPTS)
    for ids, prompt, choice in zip(prompts, PROMPTS, done.choices, strict=True):
        found = choice.logprobs
        assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
        whole = [*ids, *model.generate([ids], max_new_tokens=count, eos_token_id=[])[0, len(ids) :]] if count else ids
        assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == len(ids) + count
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        theirs = their_logprobs([int(token) for token in whole])
        for place in range(1, len(whole)):
            assert found.token_logprobs[place] == pytest.approx(theirs[place - 1, whole[place]], abs=1e-4)
            best = sorted(theirs[place - 1])[-3:]
            assert sorted(found.top_logprobs[place].values())[-3:] == pytest.approx(best, abs=1e-4)
        assert model.tokenizer.decode(ids[:1], skip_special_tokens=False) == "<s>"  # has a place among given ids only
        assert choice.text.startswith(("<s>" if as_ids else "") + prompt) and choice.finish_reason == "length"
        assert found.text_offset == sorted(found.text_offset) and found.text_offset[0] == 0
        if prompt.isascii():
            ends = [*found.text_offset[1:], len(choice.text)]
            pieces = [choice.text[begin:end] for begin, end in zip(found.text_offset, ends, strict=True)]
            assert pieces[: len(ids)] == ["<s>" if as_ids else "", *found.tokens[1 : len(ids)]]


def test_a_stream_has_the_same(api: openai.OpenAI, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "prompt": PROMPTS[3], "max_tokens": 4, "temperature": 0, "echo": True}
    for more in ({}, {"logprobs": 2}):
        whole = api.completions.create(**asked, **more).choices[0]
        text, entries = "", []
        for chunk in api.completions.create(**asked, **more, stream=True):
            text += chunk.choices[0].text
            if chunk.choices[0].logprobs is not None:
                found = chunk.choices[0].logprobs
                entries += zip(found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset, strict=True)
        assert text == whole.text and text.startswith(PROMPTS[3])
        expected = whole.logprobs
        if expected is None:
            assert not entries and not more
        else:
            lists = (expected.tokens, expected.token_logprobs, expected.top_logprobs, expected.text_offset)
            assert entries == list(zip(*lists, strict=True))


def test_every_token_counts_for_a_harness(api: openai.OpenAI, name: str, model: LlamaForCausalLM) -> None:
    """lm-evaluation-harness drops the last entry, as that of the one new token, also if this is an eos."""
    (eos,) = model.generation_config.eos_token_id
    ids = [*model.tokenizer.encode("a b"), eos, *model.tokenizer.encode("c")]
    done = api.completions.create(
        model=name, prompt=ids, max_tokens=3, temperature=0, echo=True, logprobs=1, logit_bias={str(eos): 100}
    ).choices[0]
    assert done.logprobs is not None and done.logprobs.token_logprobs is not None
    assert done.finish_reason == "stop" and len(done.logprobs.token_logprobs) == len(ids) + 1
    assert done.logprobs.tokens is not None and done.logprobs.tokens[-1] == "</s>"


def test_no_new_tokens(api: openai.OpenAI, name: str) -> None:
    for echo in (False, True):
        done = api.completions.create(model=name, prompt="hello", max_tokens=0, echo=echo, n=2)
        assert [choice.text for choice in done.choices] == ["hello" if echo else ""] * 2
        assert [choice.finish_reason for choice in done.choices] == ["length"] * 2
        assert done.usage is not None and done.usage.completion_tokens == 0 and done.usage.prompt_tokens > 0


def test_scores_do_not_depend_on_other_requests(api: openai.OpenAI, name: str) -> None:
    def ask(prompt: str) -> Any:
        done = api.completions.create(model=name, prompt=prompt, max_tokens=3, echo=True, logprobs=2, seed=3)
        return done.choices[0].model_dump()

    alone = [ask(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, PROMPTS * 3)) == alone * 3


def test_an_answer_goes_on_while_a_long_prompt_is_scored(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine, chunk=4)
    answered: list[SequenceEvent] = []
    scored: list[SequenceEvent] = []
    config = GenerationConfig(eos_token_id=())
    vocab_size = model.engine.vocab_size
    short = ServedSequence([5, 6], 40, config, model.tokenizer, vocab_size, answered.append)
    ids = np.arange(3, 43)
    states = PromptLogprobs(ids, [0] * 40, 1)
    long = ServedSequence(
        ids, 1, config, model.tokenizer, vocab_size, scored.append, states=states, echo=Echo("", states.entries)
    )
    scheduler.submit([short])
    scheduler.step()
    scheduler.submit([long])
    for step in range(1, 6):
        before = len(answered)
        scheduler.step()
        assert len(answered) == before + 1  # a token in every step: two chunks of four are scored between
        assert bool(scored) == (step == 5)
    assert [entry.logprob for event in scored for entry in event.logprobs][1:40] == pytest.approx(
        [their_logprobs(ids.tolist())[place - 1, ids[place]] for place in range(1, 40)], abs=1e-4
    )


class Broken(PromptLogprobs):
    """Reads states that are not numbers."""

    def read(self, head: CpuHead, states: np.ndarray) -> None:
        super().read(head, states * np.float32(np.nan))


def test_states_that_are_not_numbers_end_one_answer_only(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine)
    events: list[list[SequenceEvent]] = [[], []]
    for place, broken in enumerate((True, False)):
        ids = np.arange(3, 19)
        states = Broken(ids, [0] * 16, 1) if broken else PromptLogprobs(ids, [0] * 16, 1)
        config = GenerationConfig(eos_token_id=())
        sequence = ServedSequence(
            ids, 1, config, model.tokenizer, model.engine.vocab_size, events[place].append, states=states
        )
        scheduler.submit([sequence])
    while scheduler.step():
        pass
    assert "not numbers" in str(events[0][-1].error) and events[1][-1].finish_reason == "length"


@pytest.mark.parametrize("prompt", ["h🙂", "", "<|start|>a", "a</s>b"])
def test_the_text_of_a_prompt_is_unchanged(prompt: str) -> None:
    tokenizer: Tokenizer = BYTE_LEVEL
    ids = tokenizer.encode(prompt)
    text, offsets = echoed(tokenizer, prompt, ids)
    assert text == prompt and len(offsets) == len(ids) and all(0 <= at <= len(prompt) for at in offsets)
    decoded, places = echoed(tokenizer, ids, ids)
    assert decoded == tokenizer.decode(ids, skip_special_tokens=False)
    first = decoded.find(prompt)
    assert [max(0, place - first) for place in places] == offsets
