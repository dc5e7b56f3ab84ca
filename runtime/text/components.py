"""The components of a tokenizer, as tokenizer.json describes them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from tokenizers import pre_tokenizers


def components(component: Any) -> list[dict[str, Any]]:
    """Describe a normalizer, pre-tokenizer or decoder: one dictionary per part of a Sequence, or one in all.

    Args:
        component: an object of the `tokenizers` package, or None.
    """

    def flat(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if part["type"] != "Sequence":
            yield part
        for inner in next((value for value in part.values() if isinstance(value, list)), []):
            yield from flat(inner)

    return [] if component is None else list(flat(json.loads(component.__getstate__())))


@functools.cache
def byte_letters() -> dict[str, int]:
    """Return the byte that each letter of GPT-2's byte-level alphabet stands for.

    A printable byte is its own letter. The other bytes have the letters from U+0100 on, in order.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {letter: ord(letter) for letter in letters if ord(letter) < 256}
    others = sorted(set(range(256)) - set(own.values()))
    return own | dict(zip(letters[len(own) :], others, strict=True))
