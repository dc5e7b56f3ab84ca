"""generate(assistant_model=...): the tokens of plain decoding, with guesses of another artifact of the same tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgellama import LlamaForCausalLM
from edgellama.errors import UserError
from edgellama.generation.speculative import DraftModel, Pace
from support import toy_model

ARTIFACTS = Path(__file__).parents[1] / "data/compatibility/0.2.0"
PROMPT = [72, 101, 108, 108, 111]


def load(name: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(ARTIFACTS / name, threads=1)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return load("cpu-int8")


@pytest.fixture(scope="module")
def other() -> LlamaForCausalLM:
    """Another network with the same tokens: its guesses are seldom right."""
    return load("qwen3-cpu-int8")


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses at every step: whether that pays depends on the time, which no test measures."""
    monkeypatch.setattr(Pace, "length", lambda self: self._next)


def run(model: LlamaForCausalLM, assistant: LlamaForCausalLM | None, **settings: Any) -> Any:
    settings = {"eos_token_id": [], "max_new_tokens": 40, "return_dict_in_generate": True, **settings}
    return model.generate([PROMPT], assistant_model=assistant, output_logprobs=True, **settings)


SETTINGS = [
    {},
    {"max_new_tokens": 1},
    {"max_new_tokens": None, "max_length": 64},
    {"do_sample": True, "seed": 1},
    {"do_sample": True, "temperature": 0.5, "top_k": 20, "seed": 2},
    {"repetition_penalty": 1.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_tokens_are_those_of_plain_decoding(
    model: LlamaForCausalLM, other: LlamaForCausalLM, settings: dict[str, Any]
) -> None:
    plain, drafted = run(model, None, **settings), run(model, other, **settings)
    assert drafted.sequences.tolist() == plain.sequences.tolist()
    assert drafted.logprobs.tobytes() == plain.logprobs.tobytes()
    timings = drafted.timings
    assert timings.decode_steps + timings.accepted_tokens == drafted.new_tokens[0] - 1
    assert (timings.guessed_tokens > 0) == (drafted.new_tokens[0] > 2)


def test_a_twin_guesses_right(model: LlamaForCausalLM) -> None:
    drafted = run(model, load("cpu-int8"))
    assert drafted.timings.accepted_tokens == drafted.timings.guessed_tokens > 30
    assert drafted.timings.decode_steps < 9


def test_guesses_are_what_the_draft_model_would_say(other: LlamaForCausalLM) -> None:
    draft = DraftModel(other.engine)
    for prompt in (PROMPT, [*PROMPT, 65, 66], PROMPT[:3], [9, 8, 7, 6], [9, 8, 7, 6, 5]):
        plain = other.generate([prompt], max_new_tokens=5, eos_token_id=[], do_sample=False)[0].tolist()
        assert draft.guess(np.array(prompt), 5).tolist() == plain[len(prompt) :]
    context = other.engine.context
    for room in (3, 1, 0):
        full = np.resize(PROMPT, context - room)
        assert len(draft.guess(full, 7)) == room + 1
    assert draft.guess(np.resize(PROMPT, context + 1), 7).size == 0


def test_streams_and_chats_take_it(model: LlamaForCausalLM, other: LlamaForCausalLM) -> None:
    settings = {"eos_token_id": [], "max_new_tokens": 12}
    plain = [piece.id for piece in model.stream(PROMPT, **settings)]
    pieces = list(model.stream(PROMPT, assistant_model=other, **settings))
    assert [piece.id for piece in pieces] == plain
    assert pieces[-1].timings is not None and pieces[-1].timings.guessed_tokens > 0


def test_what_cannot_assist_is_refused(model: LlamaForCausalLM, other: LlamaForCausalLM, tmp_path: Path) -> None:
    toy = toy_model.load(tmp_path)
    for assistant, words in (
        (model, "is the model itself"),
        (toy, "assistant_model toy has .* tokens; needed: the 258 of this model"),
        ("some/model", "assistant_model is a str; needed: another model"),
    ):
        with pytest.raises(UserError, match=words):
            model.generate([PROMPT], assistant_model=assistant, max_new_tokens=2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="assistant_model does not go with num_beams"):
        model.generate([PROMPT], assistant_model=other, num_beams=2, max_new_tokens=2)
    with pytest.raises(UserError, match=r"portable.*last token only"):
        toy_with = toy_model.load(tmp_path / "other")
        toy_with.generate([[1, 2]], assistant_model=toy, max_new_tokens=2)


def test_other_tokens_of_the_same_number_are_named(
    model: LlamaForCausalLM, other: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = other.tokenizer.model.get_vocab(True)
    changed = {("@@" if token == "a" else token): number for token, number in words.items()}

    renamed = SimpleNamespace(model=SimpleNamespace(get_vocab=lambda added: changed))
    monkeypatch.setitem(other.__dict__, "tokenizer", renamed)
    with pytest.raises(UserError, match=rf"other tokens than this model, for example '@@' \({words['a']}\)"):
        run(model, other)
