"""Tokens in the cache are not computed again, and the result equals that of a new model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.engine.kv_cache import KVCache
from edgellama.engine.prefix_cache import PrefixCache
from edgellama.model import LlamaForCausalLM
from support.toy_model import PROMPTS, computed, continuation, load, padded

LONG = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


@pytest.fixture
def single(tmp_path: Path) -> LlamaForCausalLM:
    return load(tmp_path, eos_token_id=())


@pytest.fixture
def three(tmp_path: Path) -> LlamaForCausalLM:
    return load(tmp_path, batch=3, eos_token_id=())


def new(model: LlamaForCausalLM, prompt: list[int], count: int) -> list[int]:
    return model.generate([prompt], max_new_tokens=count, reuse_prefix=True)[0, len(prompt) :].tolist()


def test_the_next_turn_of_a_text_is_all_that_is_computed(single: LlamaForCausalLM) -> None:
    first = new(single, LONG, 4)
    longer = [*LONG, *first, 20, 21]
    # the cache holds 13 tokens: the prompt and the new ones, except the last, which the engine has not read
    counts = computed(single, lambda: new(single, longer, 3))
    assert counts == [[3], [1], [1]]
    assert new(single, longer, 3) == continuation(longer, 3)


def test_another_text_is_computed_whole_and_a_forgotten_one_too(single: LlamaForCausalLM) -> None:
    new(single, LONG, 4)
    assert computed(single, lambda: new(single, [30, 31, 32], 1)) == [[3]]
    assert computed(single, lambda: new(single, LONG, 1)) == [[10]]
    assert computed(single, lambda: new(single, LONG, 1)) == [[1]]
    single.forget()
    assert computed(single, lambda: new(single, LONG, 1)) == [[10]]


def test_the_same_call_computes_the_same_again(three: LlamaForCausalLM) -> None:
    """The rounding of floats depends on the chunks of a prompt, so by default the whole prompt is computed again."""
    for call in ({"max_new_tokens": 3}, {"max_new_tokens": 2, "num_beams": 2}):
        counts = [computed(three, lambda call=call: three.generate([LONG], **call)) for _ in range(2)]
        assert counts[0] == counts[1] and sum(counts[0][0]) == 10
    sampled: dict[str, Any] = {"do_sample": True, "seed": 3, "max_new_tokens": 1}
    for _ in range(2):
        assert [sum(row) for row in computed(three, lambda: three.generate([LONG], **sampled))] == [10]
        assert [sum(row) for row in computed(three, lambda: list(three.stream(LONG, **sampled)))] == [10]
    assert [sum(row) for row in computed(three, lambda: three.generate([LONG], **sampled, reuse_prefix=True))] == [1]
    assert computed(three, lambda: three.generate([LONG], **sampled, num_beams=2))[0] == [10, 0, 0]
    assert (
        computed(three, lambda: three.generate([LONG], num_beams=2, max_new_tokens=1, reuse_prefix=False))[0][0] == 10
    )
    session = three.session()
    session.generate(LONG, **sampled)
    assert [sum(row) for row in computed(three, lambda: session.generate([3], **sampled))] == [2]


def test_timings_report_how_many_tokens_were_cached(single: LlamaForCausalLM) -> None:
    new(single, LONG, 1)
    *_, last = single.stream([*LONG, 3], max_new_tokens=2, reuse_prefix=True)
    assert last.timings is not None
    assert (last.timings.prompt_tokens, last.timings.cached_tokens) == (11, 10)


def test_each_row_reuses_its_own(three: LlamaForCausalLM) -> None:
    ids, mask = padded(PROMPTS[:3], "left", 0)
    before = three.generate(ids, mask, max_new_tokens=5)[:, ids.shape[1] :]
    turns = [[*prompt, *row, 40 + i] for i, (prompt, row) in enumerate(zip(PROMPTS[:3], before.tolist(), strict=True))]
    ids, mask = padded(turns[::-1], "right", 0)  # in another order: rows are found by their contents
    got: list[np.ndarray] = []
    counts = computed(three, lambda: got.append(three.generate(ids, mask, max_new_tokens=4, reuse_prefix=True)))
    got = [whole[:, ids.shape[1] :] for whole in got]
    assert counts[0] == [2, 2, 2]
    assert got[0].tolist() == [continuation(turn, 4) for turn in turns[::-1]]


def test_conversations_keep_rows_of_their_own(three: LlamaForCausalLM) -> None:
    one, two = LONG, [30, 31, 32, 33]
    for _ in range(3):
        one = [*one, *new(three, one, 2), 41]
        two = [*two, *new(three, two, 2), 42]
    assert [sum(row) for row in computed(three, lambda: new(three, one, 1))] == [2]
    assert [sum(row) for row in computed(three, lambda: new(three, two, 1))] == [2]
    assert new(three, two, 5) == continuation(two, 5)


def test_a_common_prefix_is_copied_to_another_row(three: LlamaForCausalLM) -> None:
    system = [20, 21, 22, 23]
    one, two = [*system, *LONG, 3], [*system, 44, 45]
    new(three, one, 1)
    assert [sum(row) for row in computed(three, lambda: new(three, two, 1))] == [2]
    assert new(three, two, 6) == continuation(two, 6)
    # the first text is still there
    assert [sum(row) for row in computed(three, lambda: new(three, [*one, 4], 1))] == [1]
    assert new(three, [*one, 4], 6) == continuation([*one, 4], 6)


def test_a_copy_that_is_not_worth_it_is_not_made(three: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCache, "worth_copying", 5)
    system = [20, 21, 22, 23]
    new(three, [*system, *LONG], 1)
    assert [sum(row) for row in computed(three, lambda: new(three, [*system, 44, 45], 1))] == [6]
    assert new(three, [*system, 44, 45], 6) == continuation([*system, 44, 45], 6)


def test_beams_reuse_and_leave_what_can_be_reused(three: LlamaForCausalLM) -> None:
    fresh = three.generate([LONG], num_beams=3, max_new_tokens=5).tolist()
    again = {"num_beams": 3, "max_new_tokens": 5, "reuse_prefix": True}
    assert computed(three, lambda: three.generate([LONG], **again))[0] == [1, 0, 0]
    assert three.generate([LONG], **again).tolist() == fresh
    three.forget()
    new(three, [1, 2, 3], 1)
    new(three, LONG, 1)  # in the second row: the first row of the beams gets a copy
    out = three.generate([LONG], **again, return_dict_in_generate=True)
    assert out.sequences.tolist() == fresh and out.timings.cached_tokens == 9
    longer = fresh[0] + [7]
    assert new(three, longer, 4) == continuation(longer, 4)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_sequence_of_calls_gives_fresh_results(data: st.DataObject) -> None:
    """The texts have few different ids, so they often have a common prefix; one model computes them all."""
    model = data.draw(st.sampled_from(MODELS))
    texts = st.lists(st.integers(3, 4), min_size=1, max_size=12)
    for _ in range(data.draw(st.integers(1, 5))):
        prompts = data.draw(st.lists(texts, min_size=1, max_size=4))
        count = data.draw(st.integers(1, 4))
        ids, mask = padded(prompts, "left", 0)
        got = model.generate(ids, mask, max_new_tokens=count, reuse_prefix=True)[:, ids.shape[1] :].tolist()
        assert got == [continuation(prompt, count) for prompt in prompts]


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    MODELS[:] = [load(tmp_path_factory.mktemp("toy"), batch=batch, eos_token_id=()) for batch in (1, 3)]


MODELS: list[LlamaForCausalLM] = []


def test_cache_rows_of_unknown_content_are_not_reused(single: LlamaForCausalLM) -> None:
    prefixes = PrefixCache(KVCache(), 1, 8)

    def write(tokens: list[int], start: int) -> None:
        begin, count = np.array([start]), np.array([len(tokens)])
        prefixes.overwrite(begin, count)
        prefixes.written(np.array([tokens]), begin, count)

    write([1, 2, 3], 0)
    write([4], 5)  # after a gap
    assert prefixes.row(0).tolist() == [1, 2, 3]
    write([9], 1)
    assert prefixes.row(0).tolist() == [1, 9]
    write([7, 7], 0)
    assert prefixes.row(0).tolist() == [7, 7]
    prefixes.overwrite(np.array([1]), np.array([1]))  # the pass that writes it failed
    assert prefixes.row(0).tolist() == [7]
    assert prefixes.shared(np.array([7])).tolist() == [0]  # the last token of a text must be computed
    assert prefixes.shared(np.array([7, 7])).tolist() == [1]


def test_several_answers_to_a_prompt_compute_it_once(single: LlamaForCausalLM, three: LlamaForCausalLM) -> None:
    call = {"num_return_sequences": 3, "do_sample": True, "seed": 5, "max_new_tokens": 3}
    found: list[np.ndarray] = []
    counts = computed(three, lambda: found.append(three.generate([LONG], **call)))
    assert sorted(counts[0]) == [0, 0, 10]
    assert counts[1:] == [[1, 1, 1], [1, 1, 1]]
    # one row at a time, each with its computed tokens
    assert found[0].tolist() == single.generate([LONG], **call).tolist()


def test_equal_prompts_of_a_batch_are_computed_once(three: LlamaForCausalLM) -> None:
    prompts = [LONG, LONG[:4], LONG]
    ids, mask = padded(prompts, "left", 0)
    found: list[np.ndarray] = []
    counts = computed(three, lambda: found.append(three.generate(ids, attention_mask=mask, max_new_tokens=4, seed=1)))
    assert sorted(counts[0]) == [0, 4, 10]
    assert found[0][:, ids.shape[1] :].tolist() == [continuation(prompt, 4) for prompt in prompts]
