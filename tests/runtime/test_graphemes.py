"""Text comes in whole graphemes; the regex library gives the expected boundaries (UAX #29)."""

from __future__ import annotations

from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.text.graphemes import Graphemes
from support.tiny import artifact
from support.toy_model import model_of
from support.toy_tokenizers import byte_level

CLUSTERS = [
    *("a", " ", "é", "Ж", "中", "한", "。", "“", "\n", "\r\n", "7", "1️⃣", "#️⃣"),
    *("👍", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "🇩🇪", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️", "↔️", "‼️", "🫶", "👩🏿‍🚀"),
    *("नि", "क्षि", "க்", "กำ", "ที่", "שָׁ", "بِّ", "ខ្មែ", "각", "བོ"),
]


def ends(text: str) -> set[int]:
    """Returns the positions where graphemes end."""
    return {found.end() for found in regex.finditer(r"\X", text)}


def pushed(pieces: list[str]) -> list[str]:
    graphemes = Graphemes()
    return [*(graphemes.push(piece) for piece in pieces), graphemes.flush()]


@settings(max_examples=500)
@given(st.data())
def test_no_piece_ends_within_a_grapheme(data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(CLUSTERS), max_size=8)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    got = pushed(pieces)
    assert "".join(got) == text
    shown = 0
    for piece in got:
        shown += len(piece)
        assert shown == 0 or shown in ends(text)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_character_by_character_every_cluster_comes_whole(cluster: str) -> None:
    assert [piece for piece in pushed([*cluster, "a"]) if piece] in ([cluster, "a"], [cluster + "a"])


@pytest.mark.parametrize("text", ["Hello, world.", "Où est-ce ?", "Привет", "你好。", "한국어"])
def test_common_text_is_not_held_back(text: str) -> None:
    assert pushed([*text]) == [*text, ""]


@settings(max_examples=300)
@given(st.lists(st.text(max_size=6), max_size=6))
def test_any_text_comes_complete(pieces: list[str]) -> None:
    assert "".join(pushed(pieces)) == "".join(pieces)


def test_an_endless_cluster_is_not_held_back_for_ever() -> None:
    graphemes = Graphemes()
    assert any(graphemes.push("\u0301") for _ in range(300))


def test_streams_yield_whole_graphemes(tmp_path: Path) -> None:
    """A processor makes the model write a text of four-byte characters, byte by byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    text = "hi 👩🏿‍🚀🇫🇷!"
    letters = sorted({*pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]})
    words = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    words.pre_tokenizer, words.decoder = byte_level().pre_tokenizer, decoders.ByteLevel()
    opened = artifact(tmp_path, eos_token_id=())
    words.save(str(tmp_path / "tokenizer.json"))
    model = model_of(opened)
    ids = model.tokenizer.encode(text)

    def says(input_ids, scores):  # type: ignore[no-untyped-def]
        scores = scores.copy()
        scores[:, ids[input_ids.shape[1] - 1]] = 1e9
        return scores

    pieces = list(model.stream([1], max_new_tokens=len(ids), logits_processor=says))
    assert [piece.text for piece in pieces if piece.text] == ["h", "i", " ", "👩🏿‍🚀", "🇫🇷!"]
    stream = model.stream([1], max_new_tokens=len(ids), logits_processor=says)
    first = [next(stream).text for _ in range(7)]  # the last four: the bytes of the first part
    stream.cancel()
    assert "".join(first) == "hi " and next(stream).text == "👩"
