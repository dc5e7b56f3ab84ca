"""Selects how an answer is read and constrained, by the chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping

from . import reasoning
from .granite import GraniteSyntax
from .hermes import HermesSyntax
from .lark import GrammarWriter
from .llama_json import LlamaJsonSyntax
from .mistral import MistralArgsSyntax, MistralSyntax
from .pythonic import PythonicSyntax
from .smollm import SmolLMSyntax
from .syntax import AnswerReader, ToolChoice, ToolSyntax

# The first that matches a template is taken.
SYNTAXES: tuple[ToolSyntax, ...] = (
    MistralArgsSyntax(),
    MistralSyntax(),
    GraniteSyntax(),
    SmolLMSyntax(),
    HermesSyntax(),
    PythonicSyntax(),
    LlamaJsonSyntax(),
)
TOOLS = re.compile(r"\{[{%][^{}]*\btools\b")  # a template uses the variable


def has_tools(template: str) -> bool:
    """Whether a chat template writes tools into the prompt."""
    return TOOLS.search(template) is not None


def thinks(template: str) -> bool:
    """Whether a model with this chat template may think in tags."""
    return reasoning.END in template


def thoughts_begun(prompt: str) -> bool:
    """Whether a prompt ends with the tag that begins thoughts."""
    return prompt.rstrip().endswith(reasoning.BEGIN)


def syntax_named(name: str) -> ToolSyntax:
    """The syntax of --tool-parser. Raises KeyError for another name."""
    return {syntax.name: syntax for syntax in SYNTAXES}[name]


def syntax_of(template: str) -> ToolSyntax | None:
    """The syntax that a chat template asks for; None if it is not known."""
    return next((syntax for syntax in SYNTAXES if syntax.matches(template)), None)


def answer_reader(
    syntax: ToolSyntax | None, choice: ToolChoice | None, *, thinking: bool, begun: bool
) -> AnswerReader | None:
    """A reader of one answer; None if the answer is text only.

    Args:
        syntax: of tool calls.
        choice: which calls the answer may have; None for none.
        thinking: whether the answer may begin with thoughts.
        begun: whether the prompt has begun them.
    """
    calls = None
    if syntax is not None and choice is not None:
        calls = syntax.reader([tool.name for tool in choice.tools])
    if thinking:
        return reasoning.ThoughtsReader(calls or reasoning.PlainText(), begun=begun)
    return calls


def answer_grammar(
    syntax: ToolSyntax, choice: ToolChoice, token_ids: Mapping[str, int], *, thinking: bool, begun: bool
) -> str:
    """The grammar of an answer, for llguidance.

    Args:
        syntax: of tool calls.
        choice: which calls the answer may have.
        token_ids: markers that are special tokens.
        thinking: whether the answer may begin with thoughts.
        begun: whether the prompt has begun them.
    """
    writer = GrammarWriter(token_ids, rf"\s*{reasoning.BEGIN}" if thinking else "")
    answer = syntax.rules(choice, writer)
    return writer.text(reasoning.with_thoughts(answer, writer, begun=begun) if thinking else answer)
