"""Log-probabilities of both endpoints: they cover exactly the tokens of the visible text, whatever their bytes are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.generation.config import GenerationConfig
from edgellama.serve.fields.base import RequestLimits
from edgellama.serve.request import ChatRequest, CompletionRequest, GenerationRequest
from edgellama.serve.responses import ResponseWriter
from edgellama.serve.sequence import SequenceEvent, ServedSequence
from edgellama.text.tokenizer import Tokenizer
from support.toy_tokenizers import BYTE_LEVEL, SENTENCEPIECE, byte_level

LIMITS = RequestLimits(context=64, sequences=8)


def answered(
    tokenizer: Tokenizer, ids: Sequence[int], eos: int | None = None, stops: Sequence[str] = ()
) -> list[SequenceEvent]:
    """The events of a sequence whose tokens are `ids`, up to a stop string or eos."""
    events: list[SequenceEvent] = []
    config = GenerationConfig(eos_token_id=() if eos is None else (eos,), stop_strings=tuple(stops))
    size = tokenizer.model.get_vocab_size()
    sequence = ServedSequence([0], len(ids), config, tokenizer, size, events.append, top_logprobs=5)
    for token in ids:
        if not sequence.finished:
            sequence.select_token(np.where(np.arange(size) == token, np.float32(9), np.float32(0)))
    return events


def asked(chat: bool) -> GenerationRequest:
    if chat:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 5}
        return ChatRequest.model_validate({"model": "m", **body}, context=LIMITS)
    return CompletionRequest.model_validate({"model": "m", "prompt": "x", "logprobs": 5}, context=LIMITS)


def whole(tokenizer: Tokenizer, events: list[SequenceEvent], chat: bool) -> tuple[str, dict[str, Any]]:
    """(text, logprobs) of the complete response."""
    choice = json.loads(ResponseWriter(asked(chat), "m", tokenizer).complete([events], []))["choices"][0]
    return choice["message"]["content"] if chat else choice["text"], choice["logprobs"]


def streamed(tokenizer: Tokenizer, events: list[SequenceEvent], chat: bool) -> tuple[str, dict[str, Any]]:
    """The same, joined from chunks. Log-probabilities never precede the chunk in which their token's text begins."""
    writer, text = ResponseWriter(asked(chat), "m", tokenizer), ""
    joined: dict[str, Any] = {}
    for event in events:
        data = writer.next_chunk(0, [event])
        choice = {"text": "", "delta": {}, "logprobs": None} if data is None else json.loads(data)["choices"][0]
        text += choice["delta"].get("content", "") if chat else choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            joined[name] = values if values is None else [*joined.get(name, []), *values]
        assert all(offset < len(text) for offset in joined.get("text_offset", []))
    return text, joined


def joined_bytes(logprobs: dict[str, Any]) -> bytes:
    return b"".join(bytes(entry["bytes"]) for entry in logprobs["content"])


def test_tokens_that_are_parts_of_a_character_have_their_bytes() -> None:
    ids = [BYTE_LEVEL.model.token_to_id(letter) for letter in "hðŁĻĤ"]  # h, and the bytes F0 9F 99 82 of 🙂
    events = answered(BYTE_LEVEL, ids)
    text, chat = whole(BYTE_LEVEL, events, chat=True)
    assert [entry["token"] for entry in chat["content"]] == ["h", r"\xf0", r"\x9f", r"\x99", r"\x82"]
    assert text == "h🙂" == joined_bytes(chat).decode()
    text, completion = whole(BYTE_LEVEL, events, chat=False)
    assert text == "h🙂" and completion["text_offset"] == [0, 1, 1, 1, 1]
    assert completion["tokens"] == ["h", r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x99", r"bytes:\x82"]
    for token, top in zip(completion["tokens"], completion["top_logprobs"], strict=True):
        assert len(top) == 5 and max(top, key=top.__getitem__) == token


def test_a_token_ends_a_character_and_begins_the_next() -> None:
    model = byte_level()
    model.add_tokens(["Ġð"])  # a space and the first byte of a character, as in real vocabularies
    tokenizer = Tokenizer(model, {}, None)
    ids = [model.token_to_id(written) for written in ("a", "Ġð", "Ł", "Ļ", "Ĥ", "b")]
    text, logprobs = whole(tokenizer, answered(tokenizer, ids), chat=False)
    assert text == "a 🙂b" and logprobs["text_offset"] == [0, 1, 2, 2, 2, 3]
    assert logprobs["tokens"][1] == r"bytes: \xf0"
    text, logprobs = whole(tokenizer, answered(tokenizer, ids, stops=["🙂"]), chat=False)
    assert text == "a " and logprobs["tokens"] == ["a", r"bytes: \xf0"]  # only the space of the second token is visible


@pytest.mark.parametrize("chat", [True, False])
def test_special_tokens_have_no_logprobs(chat: bool) -> None:
    a, b, start, end = (BYTE_LEVEL.model.token_to_id(written) for written in ("a", "b", "<|start|>", "</s>"))
    for ids, expected in (([a, start, b, end], "ab"), ([end], "")):
        events = answered(BYTE_LEVEL, ids, eos=end)
        text, logprobs = whole(BYTE_LEVEL, events, chat)
        tokens = [entry["token"] for entry in logprobs["content"]] if chat else logprobs["tokens"]
        assert events[-1].finish_reason == "eos" and text == expected == "".join(tokens)
        assert streamed(BYTE_LEVEL, events, chat) == (text, logprobs if expected else {})


def test_the_space_that_a_decoder_drops_is_dropped_from_the_first_token() -> None:
    """In a chat, where the tokens join to the text. A completion keeps the space, because its entries are keys."""
    ids = [SENTENCEPIECE.model.token_to_id(piece) for piece in ("▁the", "▁a", "b")]
    for read in (whole, streamed):
        text, logprobs = read(SENTENCEPIECE, answered(SENTENCEPIECE, ids), True)
        assert [entry["token"] for entry in logprobs["content"]] == ["the", " a", "b"] and text == "the ab"
    assert whole(SENTENCEPIECE, answered(SENTENCEPIECE, ids), False)[1]["tokens"] == [" the", " a", "b"]


@settings(max_examples=300)
@given(st.text("abthe é🙂€", min_size=1, max_size=12), st.lists(st.text("abé🙂", min_size=1, max_size=3), max_size=2))
def test_tokens_join_to_the_text_up_to_the_one_that_a_stop_string_cuts(text: str, stops: list[str]) -> None:
    events = answered(BYTE_LEVEL, BYTE_LEVEL.encode(text, add_special_tokens=False), stops=stops)
    shown, chat = whole(BYTE_LEVEL, events, chat=True)
    assert text.startswith(shown) and (shown == text or any(stop in text for stop in stops))
    assert joined_bytes(chat).startswith(shown.encode())
    for entries in (chat["content"], *([chat["content"][:-1]] if shown else [])):
        data = b"".join(bytes(entry["bytes"]) for entry in entries)
        assert (len(data) >= len(shown.encode())) == (entries is chat["content"])  # and no token more
    _, completion = whole(BYTE_LEVEL, events, chat=False)
    assert len(completion["tokens"]) == len(chat["content"]) and all(
        at < len(shown) for at in completion["text_offset"]
    )
    for chats, logprobs in ((True, chat), (False, completion)):
        assert streamed(BYTE_LEVEL, events, chats) == (shown, logprobs if shown else {})


@settings(max_examples=300)
@given(st.lists(st.integers(0, BYTE_LEVEL.model.get_vocab_size() - 1), min_size=1, max_size=40))
def test_the_bytes_of_any_tokens_join_to_the_text(ids: list[int]) -> None:
    events = answered(BYTE_LEVEL, ids)
    text, logprobs = whole(BYTE_LEVEL, events, chat=True)
    assert joined_bytes(logprobs).decode(errors="replace") == text
    assert streamed(BYTE_LEVEL, events, True)[1].get("content", []) == logprobs["content"]
