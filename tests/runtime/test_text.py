"""Compares the tokenizer, the chat template and incremental text with tokenizers and transformers."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edgellama.errors import UserError
from edgellama.text.tokenizer import LONG, Tokenizer
from support.toy_tokenizers import BYTE_LEVEL, LLAMA3_STYLE, SENTENCEPIECE, byte_level, save, sentencepiece

LLAMA2_STYLE = """{%- if messages[0].role == 'system' %}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
    {%- else %}
        {% generation %}{{- ' ' + message['content'] + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""
ODDS_AND_ENDS = """{% set ns = namespace(count=0) %}
{% for message in messages %}
    {% if message.role == 'stop' %}{% break %}{% endif %}
    {% set ns.count = ns.count + 1 %}
    {{ message | tojson }}
{% endfor %}
{{ ns.count }} {{ tools is none }} {{ documents is none }} {{ extra | default('none') }} {{ strftime_now('%Y')[:2] }}
{{ messages | tojson(indent=2) }}
"""
CHAT = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Où est <Paris> & co?"},
    {"role": "assistant", "content": "In France."},
    {"role": "user", "content": "Thanks 🙂"},
]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.text_stream()
    return [*(stream.push(i) for i in ids), stream.flush()]


@settings(max_examples=500)
@given(st.lists(st.integers(0, BYTE_LEVEL.model.get_vocab_size() - 1), max_size=60))
def test_random_byte_tokens_stream_to_their_text(ids: list[int]) -> None:
    assert "".join(streamed(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


@settings(max_examples=300)
@given(st.text(max_size=30), st.sampled_from([BYTE_LEVEL, SENTENCEPIECE]))
def test_text_streams_in_whole_characters(text: str, tokenizer: Tokenizer) -> None:
    """Valid text never has a replacement character, and is complete before `flush` returns the rest."""
    ids = tokenizer.model.encode(text.replace("\ufffd", ""), add_special_tokens=False).ids
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(pieces)
    assert pieces[-1] == ""


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from([i for i in range(SENTENCEPIECE.model.get_vocab_size()) if not 3 <= i < 3 + 0x80]), max_size=40
    )
)
def test_random_byte_fallback_tokens_stream_to_their_text(ids: list[int]) -> None:
    """The byte fallback decoder turns a whole run of bytes into replacement characters when its end is invalid, whole
    characters at its beginning included. Those may have been shown, so the texts agree but for such runs (the bytes
    here are 80 to FF, so that letters come from other tokens)."""
    whole = "".join(streamed(SENTENCEPIECE, ids))
    expected = SENTENCEPIECE.decode(ids)
    if "\ufffd" not in expected:
        assert whole == expected
    else:
        assert [c for c in whole if c in "abthe "] == [c for c in expected if c in "abthe "]


def test_a_character_of_four_tokens_is_shown_once_whole() -> None:
    ids = [BYTE_LEVEL.model.token_to_id(char) for char in "ðŁĻĤ"]  # the bytes F0 9F 99 82 in byte-level letters
    assert streamed(BYTE_LEVEL, ids) == ["", "", "", "🙂", ""]
    assert streamed(BYTE_LEVEL, ids[:3]) == ["", "", "", "\ufffd"]


def test_spaces_and_special_tokens_in_a_stream() -> None:
    ids = [SENTENCEPIECE.model.token_to_id(piece) for piece in ("<s>", "▁the", "▁a", "b", "</s>")]
    assert streamed(SENTENCEPIECE, ids) == ["", "the", " a", "b", "", ""]


def test_text_that_continues_a_prompt_keeps_its_first_space() -> None:
    the, a, b, byte = (SENTENCEPIECE.model.token_to_id(piece) for piece in ("▁the", "▁a", "b", "<0xE2>"))
    for behind, expected in (((the,), [" a", "b", ""]), ((the,) * 20, [" a", "b", ""]), ((the, byte), ["a", "b", ""])):
        stream = SENTENCEPIECE.text_stream(prefix_ids=behind)
        assert [stream.push(a), stream.push(b), stream.flush()] == expected


def test_endless_undecodable_bytes_are_shown_after_a_while() -> None:
    stream = BYTE_LEVEL.text_stream()
    token = BYTE_LEVEL.model.token_to_id("ÿ")
    pieces = [stream.push(token) for _ in range(300)]
    assert sum(map(len, pieces)) >= 300 - 64


@pytest.mark.parametrize("template", [LLAMA3_STYLE, LLAMA2_STYLE, ODDS_AND_ENDS])
@pytest.mark.parametrize("generation_prompt", [False, True])
def test_chat_templates_render_as_transformers_renders_them(
    tmp_path: Path, template: str, generation_prompt: bool
) -> None:
    ours = save(tmp_path, byte_level(), bos_token="<s>", eos_token={"content": "</s>"}, chat_template=template)
    theirs = PreTrainedTokenizerFast(tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>")
    for chat in (CHAT, CHAT[1:], CHAT[1:2]):
        text = theirs.apply_chat_template(
            chat, chat_template=template, add_generation_prompt=generation_prompt, tokenize=False, extra="x"
        )
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.render_chat(chat, add_generation_prompt=generation_prompt, extra="x") == text
        assert ours.encode_chat(chat, add_generation_prompt=generation_prompt, extra="x") == ids


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_ids_and_text_are_those_of_transformers(text: str) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=BYTE_LEVEL.model, bos_token="<s>", eos_token="</s>")
    ids = theirs(text).input_ids
    assert BYTE_LEVEL.encode(text) == ids
    assert BYTE_LEVEL.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids
    assert BYTE_LEVEL.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=30), st.sampled_from([BYTE_LEVEL, SENTENCEPIECE]), st.booleans())
def test_a_long_text_has_the_ids_that_tokenizers_gives_it(text: str, tokenizer: Tokenizer, special: bool) -> None:
    text *= LONG // len(text) + 1
    expected = tokenizer.model.encode(text, add_special_tokens=special).ids
    assert tokenizer.encode(text, add_special_tokens=special) == expected


def test_other_threads_run_while_a_long_text_is_encoded() -> None:
    ticks, done = [0], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0.001)

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        before = ticks[0]
        BYTE_LEVEL.encode("the é " * 100_000)  # it takes hundreds of milliseconds
        assert ticks[0] - before > 5
    finally:
        done.set()
        ticking.join()


def variant(model: tokenizers.Tokenizer, /, **parts: Any) -> Tokenizer:
    for name, part in parts.items():
        setattr(model, name, part)
    return Tokenizer(model, {}, None)


def without_letters(**options: Any) -> Tokenizer:
    """Byte-level BPE without tokens for some bytes, like SmolLM2's: these bytes of a text become no token."""
    described = json.loads(byte_level().to_str())
    vocabulary = described["model"]["vocab"]
    for letter in "xĊĠÃ":
        vocabulary["<unk>" if letter == "x" else f"<{letter}>"] = vocabulary.pop(letter)
    described["model"].update(merges=[], **options)
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(described)), {}, None)


LLAMA2_SPACES = normalizers.Replace(" ", "▁")
BOUNDED = [
    BYTE_LEVEL,
    SENTENCEPIECE,
    without_letters(),
    without_letters(unk_token="<unk>"),
    variant(byte_level(), normalizer=normalizers.NFC()),
    variant(
        sentencepiece(), normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ),
    variant(sentencepiece(), pre_tokenizer=pre_tokenizers.Metaspace()),
]
# four of these tokens may become one character
COMBINING = st.text("ΑΙ\u0313\u0301\u0345a\u0328\u0308\n x", max_size=40)


@settings(max_examples=500)
@given(st.one_of(st.text(max_size=40), COMBINING), st.sampled_from(BOUNDED))
def test_a_text_has_no_fewer_tokens_than_the_fewest(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))


def test_a_token_may_stand_for_many_bytes_and_for_what_its_characters_are_composed_of() -> None:
    composed = byte_level()
    composed.normalizer = normalizers.NFC()
    for model, token, text in ((sentencepiece(), "€" * 9, "€" * 9), (composed, "ᾌ" * 9, "Α\u0313\u0301\u0345" * 9)):
        model.add_tokens([AddedToken(token, normalized=True)])
        tokenizer = Tokenizer(model, {}, None)
        assert len(tokenizer.encode(text, add_special_tokens=False)) == 1 == tokenizer.fewest_tokens(text)


@pytest.mark.parametrize("tokenizer", BOUNDED)
def test_the_fewest_tokens_grow_with_the_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.fewest_tokens("a" * 10_000) >= 10_000 // (4 * len("<|start|>"))
    assert tokenizer.fewest_tokens("") == 0


@pytest.mark.parametrize(
    "tokenizer",
    [
        variant(byte_level(), normalizer=normalizers.Replace(Regex("a+"), "a")),
        variant(byte_level(), normalizer=normalizers.Replace("aa", "a")),
        variant(byte_level(), normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])),
        variant(byte_level(), pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
        variant(
            byte_level(),
            pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Split("a", "removed"), pre_tokenizers.ByteLevel()]),
        ),
        without_letters(unk_token="<unk>", fuse_unk=True),
        variant(without_letters().model, normalizer=normalizers.NFC()),
        Tokenizer(
            tokenizers.Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True)), {}, None
        ),
        variant(byte_level(), model=models.WordLevel({"a": 0}, unk_token="a")),
    ],
)
def test_there_is_no_bound_where_a_token_may_stand_for_any_number_of_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.fewest_tokens("a" * 10_000) == 0


def test_a_token_that_takes_in_spaces_may_stand_for_any_number_of_characters() -> None:
    model = byte_level()
    model.add_special_tokens([AddedToken("<|wide|>", rstrip=True)])
    tokenizer = Tokenizer(model, {}, None)
    assert len(tokenizer.encode("<|wide|>" + " " * 1000, add_special_tokens=False)) == 1
    assert tokenizer.fewest_tokens("<|wide|>" + " " * 1000) == 0


@settings(max_examples=200)
@given(st.text(max_size=30), st.sampled_from([BYTE_LEVEL, SENTENCEPIECE]))
def test_the_bytes_of_tokens_join_to_their_text(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text.replace(" ", "▁") if tokenizer is SENTENCEPIECE else text, add_special_tokens=False)
    found = [tokenizer.token_bytes(token, first=at == 0) for at, token in enumerate(ids)]
    assert b"".join(found).decode() == tokenizer.decode(ids, skip_special_tokens=False)


def test_the_bytes_of_tokens() -> None:
    def found(tokenizer: Tokenizer, *written: str) -> list[bytes]:
        return [tokenizer.token_bytes(tokenizer.model.token_to_id(one)) for one in written]

    assert found(BYTE_LEVEL, "Ġt", "ðŁĻ", "Ċ", "</s>") == [b" t", b"\xf0\x9f\x99", b"\n", b"</s>"]
    assert found(SENTENCEPIECE, "▁the", "▁", "<0xF0>", "<0x0A>", "€") == [b" the", b" ", b"\xf0", b"\n", "€".encode()]
    model = byte_level()
    model.add_tokens(["<｜>"])  # letters that represent no byte
    assert found(Tokenizer(model, {}, None), "<｜>") == ["<｜>".encode()]
    assert BYTE_LEVEL.token_bytes(9999) == b""


def test_where_the_template_comes_from(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "listed"}]
    assert save(tmp_path / "none", byte_level()).chat_template is None
    assert save(tmp_path / "listed", byte_level(), chat_template=named).chat_template == "listed"
    (tmp_path / "listed" / "chat_template.jinja").write_text("filed")
    filed = Tokenizer.from_folder(tmp_path / "listed")
    assert filed.render_chat(CHAT) == "filed"


def test_chats_with_tools_use_the_template_for_tools(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0].function.name }}"}]
    tokenizer = save(tmp_path / "both", byte_level(), chat_template=[*named, {"name": "rag", "template": "found"}])
    assert tokenizer.render_chat(CHAT) == tokenizer.render_chat(CHAT, tools=None) == "plain"
    assert tokenizer.render_chat(CHAT, tools=tools) == "f"
    assert tokenizer.render_chat(CHAT, tools=tools, chat_template="rag") == "found"
    with pytest.raises(UserError, match="no chat template 'x'; it has 'tool_use', 'rag', 'default'"):
        tokenizer.render_chat(CHAT, chat_template="x")
    only = save(tmp_path / "only", byte_level(), chat_template=named[1:])
    assert only.render_chat(CHAT, tools=tools) == "f"
    with pytest.raises(UserError, match="no chat template 'default'; it has 'tool_use'"):
        only.render_chat(CHAT)
    assert save(tmp_path / "plain", byte_level(), chat_template="plain").render_chat(CHAT, tools=tools) == "plain"


def test_padding_and_truncation_of_the_file_do_not_apply(tmp_path: Path) -> None:
    model = byte_level()
    model.enable_truncation(2)
    model.enable_padding(length=9)
    assert len(save(tmp_path, model).encode("three", add_special_tokens=False)) == 5


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{{ messages.append(1) }}",
        "{% for x in range(99999999) %}{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tmp_path: Path, template: str) -> None:
    with pytest.raises(UserError, match="chat template refuses"):
        save(tmp_path, byte_level(), chat_template=template).render_chat(CHAT)


def test_missing_and_damaged_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer \(tokenizer\.json\)"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizers cannot read it"):
        Tokenizer.from_folder(tmp_path)
    save(tmp_path, byte_level())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not valid JSON"):
        Tokenizer.from_folder(tmp_path)
    for token in (7, {"lstrip": True}, ["</s>"]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
        with pytest.raises(UserError, match=r"tokenizer_config\.json: eos_token is .*; needed: text"):
            Tokenizer.from_folder(tmp_path)
    with pytest.raises(UserError, match="no chat template"):
        BYTE_LEVEL.render_chat(CHAT)
    refusing = save(tmp_path / "r", byte_level(), bos_token="", eos_token="", chat_template=LLAMA2_STYLE)
    with pytest.raises(UserError, match="roles must alternate"):
        refusing.render_chat(CHAT[2:])
    with pytest.raises(
        UserError, match=r"tokenizer_config\.json: the chat template cannot be compiled: line 1: Expected"
    ):
        save(tmp_path / "s", byte_level(), chat_template="{% if %}")
