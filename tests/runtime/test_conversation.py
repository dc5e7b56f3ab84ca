"""Conversations: each token is computed once with any template; the context fills up; files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from edgellama.conversation.chat import Chat
from edgellama.conversation.transcript import Transcript
from edgellama.errors import UserError
from edgellama.generation.config import GenerationConfig
from edgellama.generation.output import Piece
from edgellama.model import LlamaForCausalLM
from edgellama.text.tokenizer import Tokenizer
from support.toy_chat import CONTEXT, LLAMA2_LIKE, TEMPLATES, toy
from support.toy_model import computed, continuation

QUESTIONS = ["hello there", "why", "and then", "aa bb", "no", "tell me", "more", "is it", "so", "bye"]


@pytest.fixture
def model(tmp_path: Path) -> LlamaForCausalLM:
    return toy(tmp_path)


def ask(chat: Chat, text: str, **settings: Any) -> list[Piece]:
    return list(chat.ask(text, **settings))


@pytest.mark.parametrize("ending", ["length", "eos"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_ten_turns_compute_each_token_once(tmp_path: Path, template: str, ending: str) -> None:
    model = toy(tmp_path, TEMPLATES[template], context=1024)
    chat = Chat(model)
    eos = model.tokenizer.model.token_to_id("</s>")
    steps: list[int] = []

    def ends(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Ends an answer by eos after seven tokens."""
        steps.append(1)
        if ending == "eos" and len(steps) % 8 == 0:
            scores = np.full_like(scores, -np.inf)
            scores[:, eos] = 0
        else:
            scores = scores.copy()
            scores[:, eos] = -np.inf
        return scores

    settings: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": eos, "logits_processor": ends}
    reasons = []
    counts = computed(
        model, lambda: [reasons.append(ask(chat, text, **settings)[-1].finish_reason) for text in QUESTIONS]
    )
    assert reasons == [ending] * 10 and len(chat.messages) == 20
    total = sum(sum(row) for row in counts)
    turn = chat._turn
    assert turn is not None
    assert total == len(turn.ids) - 1  # all except the last one, which the engine has not read yet
    assert model.engine.prefixes.row(0).tolist() == turn.ids[:-1]
    # the conversation encoded as one text has other ids, so much of it would be computed again
    text = model.tokenizer.encode_chat(chat.messages, add_generation_prompt=False)
    same = next(i for i, (a, b) in enumerate(zip(text, turn.ids, strict=False)) if a != b)
    assert same < len(turn.ids) / 2


def test_an_answer_of_the_tenth_turn_is_that_of_a_fresh_start(model: LlamaForCausalLM) -> None:
    chat = Chat(model, system="be kind")
    for text in QUESTIONS[:4]:
        pieces = ask(chat, text, max_new_tokens=6)
    assert chat._turn is not None
    ids = chat._turn.ids
    assert ids[-6:] == [piece.id for piece in pieces] == continuation(ids[:-6], 6, CONTEXT)


def test_a_seed_does_not_make_a_chat_compute_more(model: LlamaForCausalLM) -> None:
    chat = Chat(model)
    ask(chat, "hello", max_new_tokens=4, do_sample=True, seed=1)
    *_, last = ask(chat, "why", max_new_tokens=4, do_sample=True, seed=1)
    assert last.timings is not None and last.timings.cached_tokens > 20


def test_a_template_that_changes_the_answer_falls_back_to_the_whole_text(tmp_path: Path) -> None:
    upper = "{% for m in messages %}{{ '<|start|>' + (m.content if m.role == 'user' else 'xyz') }}{% endfor %}<|end|>"
    model = toy(tmp_path, upper)
    chat = Chat(model)
    ask(chat, "hello there", max_new_tokens=5)
    counts = computed(model, lambda: ask(chat, "why", max_new_tokens=1))
    prompt = model.tokenizer.encode_chat([*chat.messages[:2], {"role": "user", "content": "why"}])
    assert chat._turn is not None and chat._turn.ids[:-1] == prompt
    first = len(model.tokenizer.encode("<|start|>hello there", add_special_tokens=False))
    assert counts == [[len(prompt) - first]]  # the common prefix is not computed again


def test_stateless_messages_continue_the_earlier_answers(model: LlamaForCausalLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    answer = model.chat(messages, max_new_tokens=6)
    assert str(answer) == answer.content and answer.finish_reason == "length"
    other = model.chat([{"role": "user", "content": "another talk"}], max_new_tokens=3)
    assert other.timings.cached_tokens > 0  # the prefix that the template writes
    messages += [answer.message, {"role": "user", "content": "why"}]
    prompt = model.turn(messages).ids
    answer = model.chat(messages, max_new_tokens=6)
    assert answer.content == model.tokenizer.decode(continuation(prompt, 6, CONTEXT))
    # with the last message edited, the turn before it is reused
    edited = [*messages[:-1], {"role": "user", "content": "who"}]
    counts = computed(model, lambda: model.chat(edited, max_new_tokens=1))
    same = next(i for i, (a, b) in enumerate(zip(prompt, model.turn(edited).ids, strict=False)) if a != b)
    assert counts == [[len(model.turn(edited).ids) - same]] and same > len(prompt) / 2


def test_an_edited_answer_is_encoded_again(model: LlamaForCausalLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    answer = model.chat(messages, max_new_tokens=6)
    for content in ("no", answer.content + "no", answer.content[:-1]):
        longer = [*messages, {"role": "assistant", "content": content}, {"role": "user", "content": "why"}]
        assert model.turn(longer).ids == model.tokenizer.encode_chat(longer)


def test_a_turn_goes_on_only_where_no_token_can_reach_across(model: LlamaForCausalLM) -> None:
    tokenizer = model.tokenizer
    turn = Transcript("<|start|>a", tokenizer.encode("<|start|>a"))
    turn.record(Piece(1, "b", 0.0))
    assert turn.continued("<|start|>ab<|start|>c", tokenizer) == [*turn.ids, *tokenizer.encode("<|start|>c")]
    assert turn.continued("<|start|>a b \n<|start|>c", tokenizer) == [*turn.ids, *tokenizer.encode("<|start|>c")]
    for other in ("<|start|>abb", "<|start|>ab", "<|start|>ac<|start|>", "<|end|>ab<|start|>c", "<|start|>a"):
        assert turn.continued(other, tokenizer) is None
    eos = tokenizer.model.token_to_id("</s>")
    turn.record(Piece(eos, "", 0.0, "eos"))
    assert turn.continued("<|start|>ab</s>", tokenizer) == turn.ids
    assert turn.continued("<|start|>ab<|end|>", tokenizer) == [*turn.ids[:-1], tokenizer.model.token_to_id("<|end|>")]


def test_a_full_context_drops_the_oldest_turns_but_not_the_system_message(tmp_path: Path) -> None:
    model = toy(tmp_path, context=128)
    chat = Chat(model, system="be kind")
    dropped, longest = [], 0
    for index in range(12):
        ask(chat, f"{'abcdefghijkl'[index]} tell", max_new_tokens=8)
        dropped.append(chat.dropped)
        assert chat._turn is not None
        longest = max(longest, len(chat._turn.ids))
    assert max(dropped) > 0 and dropped.count(0) > 6 and longest > 80
    assert chat.messages[0] == {"role": "system", "content": "be kind"}
    assert chat.messages[1]["role"] == "user" and chat.messages[-2]["content"] == "l tell"
    before = list(chat.messages)
    with pytest.raises(UserError, match=r"this artifact holds 128 \(context\)"):
        chat.ask("x" * 50 + "yz" * 50)
    assert chat.messages == before
    ask(chat, "so", max_new_tokens=2)


def test_an_answer_may_fill_the_context_where_nothing_limits_it(tmp_path: Path) -> None:
    model = toy(tmp_path, context=64)
    pieces = list(model.stream_chat([{"role": "user", "content": "hi"}]))
    assert pieces[-1].finish_reason == "length"
    assert len(pieces) == 64 - len(model.turn([{"role": "user", "content": "hi"}]).ids)
    model.chat([{"role": "user", "content": "hi"}], max_length=40)


def test_a_cancelled_answer_stays_as_far_as_it_came(model: LlamaForCausalLM) -> None:
    chat = Chat(model)
    ask(chat, "hello", max_new_tokens=3)
    stream = chat.ask("why", max_new_tokens=50)
    pieces = [next(stream) for _ in range(4)]
    stream.cancel()
    pieces += list(stream)
    assert pieces[-1].finish_reason == "cancelled"
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
    counts = computed(model, lambda: ask(chat, "no", max_new_tokens=1))
    assert chat._turn is not None and sum(map(sum, counts)) < len(chat._turn.ids) / 2
    before = list(chat.messages)
    stream = chat.ask("so")
    stream.cancel()
    assert [piece.id for piece in stream] == [None]
    assert chat.messages == before  # as if it had not been sent


def test_an_answer_that_nobody_reads_leaves_the_chat_unchanged(model: LlamaForCausalLM) -> None:
    chat = Chat(model, system="be kind")
    chat.ask("hello").close()
    ask(chat, "why", max_new_tokens=3)
    assert [message["content"] for message in chat.messages[:-1]] == ["be kind", "why"] and chat.dropped == 0


def test_a_chat_goes_on_from_a_file(model: LlamaForCausalLM, tmp_path: Path) -> None:
    chat = Chat(model, system="be kind")
    with pytest.raises(UserError, match="nothing has been said"):
        chat.save(tmp_path / "chat")
    ask(chat, "hello", max_new_tokens=6)
    ask(chat, "why", max_new_tokens=6)
    chat.save(tmp_path / "chat")
    expected = [piece.id for piece in ask(chat, "and then", max_new_tokens=6)]
    again = Chat(toy(tmp_path / "other"))
    again.load(tmp_path / "chat")
    assert again.messages == chat.messages[:5]
    got: list[int | None] = []
    counts = computed(again.model, lambda: got.extend(piece.id for piece in ask(again, "and then", max_new_tokens=6)))
    assert got == expected
    new = len(again.model.turn([{"role": "user", "content": "and then"}]).ids)
    assert counts[0][0] <= new + 2  # the new message, and the end of the last answer
    again.reset()
    assert again.messages == [{"role": "system", "content": "be kind"}]


def test_a_session_that_is_not_a_chat_is_refused(model: LlamaForCausalLM, tmp_path: Path) -> None:
    session = model.session()
    session.generate([1, 2, 3], max_new_tokens=2)
    session.save(tmp_path / "text")
    session.save(tmp_path / "bad", {"chat": "{"})
    session.save(tmp_path / "odd", {"chat": '{"messages": [], "turn": {"when": 1}}'})
    chat = Chat(model)
    ask(chat, "hello", max_new_tokens=2)
    before = list(chat.messages)
    for name in ("text", "bad", "odd"):
        with pytest.raises(UserError, match="a session, but not of a chat"):
            chat.load(tmp_path / name)
        assert chat.messages == before
    with safe_open(tmp_path / "text", "np") as file:
        assert "chat" not in file.metadata()


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ({"messages": []}, "messages is a dict"),
        (None, "messages is a NoneType"),
        (["hello"], r"messages\[0\] is a str"),
        ([{"content": "hello"}], r"messages\[0\] has the role None"),
        ([{"role": "user"}], r"messages\[0\] has the content None"),
        ([{"role": "user", "content": 3}], r"messages\[0\] has the content 3"),
    ],
)
def test_invalid_messages_are_refused(model: LlamaForCausalLM, messages: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.chat(messages)
    with pytest.raises(UserError, match=message):
        model.stream_chat(messages)


def test_a_string_is_one_message_of_the_user(model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="messages is a str"):  # the template itself takes messages only
        model.tokenizer.render_chat("hello")  # type: ignore[arg-type]
    model.forget()
    expected = list(model.stream_chat([{"role": "user", "content": "hello"}], max_new_tokens=5))
    model.forget()
    pieces = list(model.stream_chat("hello", max_new_tokens=5))
    assert [piece.id for piece in pieces] == [piece.id for piece in expected] and len(pieces) == 5
    assert model.chat("hello", max_new_tokens=5).content == "".join(piece.text for piece in pieces)
    raw = model.stream("hello", max_new_tokens=5)  # stream() applies no template
    assert raw.prefix_ids == model.tokenizer.encode("hello") != model.turn("hello").ids


def test_an_empty_message_and_unknown_settings_are_refused(model: LlamaForCausalLM) -> None:
    chat = Chat(model)
    with pytest.raises(UserError, match="the message is empty"):
        chat.ask(" \n")
    with pytest.raises(TypeError, match="no keyword 'max_tokens'; the nearest is 'max_new_tokens'"):
        chat.ask("hello", max_tokens=3)
    assert chat.messages == []


def test_an_artifact_without_a_template_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chat template"):
        toy(tmp_path, None).chat([{"role": "user", "content": "hi"}])


def test_variables_reach_the_template(tmp_path: Path) -> None:
    model = toy(tmp_path, "{{ mood }}{{ tools | length }}" + LLAMA2_LIKE)
    messages = [{"role": "user", "content": "hi"}]
    tools = [{"type": "function", "function": {"name": name}} for name in ("one", "two")]
    stream = model.stream_chat(messages, tools=tools, chat_template_kwargs={"mood": "sad"}, max_new_tokens=1)
    list(stream)
    assert model.transcripts._turns[-1].text.startswith("sad2<s>inst hi")


def test_added_tokens_are_known(model: LlamaForCausalLM) -> None:
    tokenizer: Tokenizer = model.tokenizer
    assert [tokenizer.is_added_token(i) for i in (0, 45, 46, 49)] == [False, False, True, True]


def test_a_limit_in_a_generation_config_holds_in_a_chat(model: LlamaForCausalLM) -> None:
    """An answer without a limit may fill the context; a limit counts wherever it is given."""
    config = GenerationConfig(max_new_tokens=3)
    assert len(list(model.stream_chat("hello", generation_config=config))) == 3
    assert len(list(model.stream_chat("hello", generation_config=config, max_new_tokens=4))) == 4
    assert len(list(model.stream_chat("hello", generation_config=GenerationConfig(do_sample=True)))) > 20
