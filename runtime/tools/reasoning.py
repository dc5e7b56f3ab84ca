"""Models that think before they answer: <think>thoughts</think>answer."""

from __future__ import annotations

from collections.abc import Iterator

from .json_calls import held_back
from .syntax import AnswerDelta, AnswerReader, GrammarRules

BEGIN, END = "<think>", "</think>"


class PlainText:
    """Reads an answer that is text only."""

    def feed(self, text: str) -> Iterator[AnswerDelta]:
        """Yield the text as content."""
        yield AnswerDelta(content=text)

    def end(self) -> Iterator[AnswerDelta]:
        """Nothing is held back."""
        yield from ()


class ThoughtsReader:
    """Separates the thoughts at the beginning of an answer from the rest, which another reader reads."""

    def __init__(self, answer: AnswerReader, *, begun: bool) -> None:
        """Args:
        answer: reads what follows the thoughts.
        begun: whether the prompt ends with BEGIN.
        """
        self._answer = answer
        self._state = "thoughts" if begun else "before"
        self._begun = False  # whether a thought was sent
        self._held = ""

    def feed(self, text: str) -> Iterator[AnswerDelta]:
        """Yield what the text adds."""
        text, self._held = self._held + text, ""
        if self._state == "before":
            bare = text.lstrip()
            if BEGIN.startswith(bare):
                self._held = text
                return
            thinks = bare.startswith(BEGIN)
            self._state, text = ("thoughts", bare[len(BEGIN) :]) if thinks else ("answer", text)
        if self._state == "thoughts":
            thought, found, rest = text.partition(END)
            kept = len(thought.rstrip()) if found else held_back(text, END)
            self._held = "" if found else text[kept:]
            shown = text[:kept] if self._begun else text[:kept].lstrip()
            if shown:
                self._begun = True
                yield AnswerDelta(reasoning=shown)
            if not found:
                return
            self._state, text = "space", rest
        if self._state == "space":
            text = text.lstrip()
            if not text:
                return
            self._state = "answer"
        if text:
            yield from self._answer.feed(text)

    def end(self) -> Iterator[AnswerDelta]:
        """Yield what was held back."""
        held, self._held = self._held, ""
        if held and self._state == "thoughts":
            if held.strip():
                yield AnswerDelta(reasoning=held)
        elif held:
            yield from self._answer.feed(held)
        yield from self._answer.end()


def with_thoughts(answer: str, rules: GrammarRules, *, begun: bool) -> str:
    """Add the rule of an answer that may begin with thoughts, and return its name.

    Args:
        answer: the rule of the answer without thoughts.
        rules: the grammar.
        begun: whether the prompt ends with BEGIN.
    """
    thoughts = f"{rules.up_to(END)} SPACE? {answer}"
    if begun:
        return rules.rule(thoughts)
    return rules.rule(f"{answer} | {rules.leading(BEGIN)} {thoughts}")
