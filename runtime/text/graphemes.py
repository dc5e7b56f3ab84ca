"""Text in whole graphemes: a reader's one character may be several code points, which may arrive in several pieces.

Boundaries are those of Unicode's text segmentation (UAX #29, extended grapheme clusters), or fewer. Only the text that
follows shows whether the last cluster is complete. The last cluster is held back where more of it is likely: after
emoji and their parts, in scripts that write vowels as marks, after digits (keycaps). Elsewhere it is returned at once.
So in text that writes accents as separate marks (NFD), a mark may arrive after its letter.
"""

from __future__ import annotations

import unicodedata

ZWJ = "\u200d"
LONGEST = 128  # most characters held back; clusters of real text are far shorter
CONTINUING = (  # blocks of characters that marks, joiners or further parts often follow
    (0x0590, 0x109F),  # Hebrew, Arabic, the scripts of India, Thai, Lao, Tibetan, Myanmar
    (0x1100, 0x11FF),  # Hangul jamo
    (0x1700, 0x18AF),  # Philippine scripts, Khmer, Mongolian
    (0x1900, 0x1CFF),  # Limbu to Vedic marks
    (0x203C, 0x2BFF),  # symbols that a variation selector makes emoji
    (0x3030, 0x303D),
    (0xA800, 0xABFF),  # Syloti Nagri to Meetei Mayek
    (0xD7B0, 0xD7FF),  # Hangul jamo
    (0x11000, 0x11FFF),  # historic scripts of India
    (0x1F000, 0x1FAFF),  # emoji
)


class Graphemes:
    """Takes text in pieces, and returns it in pieces that end with a complete grapheme."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """Add text and return what is complete now; often less or more than `text`."""
        text = self._held + text
        end = complete(text)
        self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """End the text and return what is still held back."""
        held, self._held = self._held, ""
        return held


def complete(text: str) -> int:
    """Return how many characters of `text` surely are whole graphemes."""
    if not text or not may_continue(text[-1]):
        return len(text)
    first = len(text) - 1
    while first > 0 and len(text) - first < LONGEST and not boundary(text, first):
        first -= 1
    return first


def may_continue(char: str) -> bool:
    """Whether more of the same grapheme is likely after this character."""
    if char.isascii():
        return char in "0123456789#*\r"
    code = ord(char)
    return any(low <= code <= high for low, high in CONTINUING) or unicodedata.category(char) in (
        *("Mn", "Mc", "Me", "Cf", "So", "Sk"),
    )


def boundary(text: str, index: int) -> bool:
    """Whether a grapheme surely ends before text[index] (0 < index < len(text))."""
    before, after = text[index - 1], text[index]
    if before == "\r" and after == "\n":
        return False
    if extends(after) or before == ZWJ or unicodedata.combining(before) == 9:  # 9: virama, which joins consonants
        return False
    if _prepends(before) or (_jamo(before) and _jamo(after)):
        return False
    if _regional(before) and _regional(after):  # flags are pairs
        start = index
        while start > 0 and _regional(text[start - 1]):
            start -= 1
        return (index - start) % 2 == 0
    return True


def extends(char: str) -> bool:
    """Whether this character belongs to the one before it: marks, joiners, skin tones, tags."""
    return (
        unicodedata.category(char) in ("Mn", "Mc", "Me")
        or char in "\u200c\u200d\uff9e\uff9f"
        or 0x1F3FB <= ord(char) <= 0x1F3FF
        or 0xE0020 <= ord(char) <= 0xE007F
        or char in "\u0e33\u0eb3"  # Thai and Lao "am"
    )


def _regional(char: str) -> bool:
    return 0x1F1E6 <= ord(char) <= 0x1F1FF


def _jamo(char: str) -> bool:
    code = ord(char)
    return 0x1100 <= code <= 0x11FF or 0xA960 <= code <= 0xA97F or 0xAC00 <= code <= 0xD7FF


def _prepends(char: str) -> bool:
    """Whether this character belongs to the next one: signs before numbers, letters written above the next."""
    return (unicodedata.category(char) == "Cf" and char != "\u200b") or char in "\u0d4e\U000111c2\U000111c3"
