"""How an answer is read: as text, with thoughts, or with tool calls; by the request and the model's chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UserError
from ...grammar import GrammarTokenizer, JsonSchema, LarkGrammar, schema_text
from ...text.tokenizer import Tokenizer
from ...tools import choose, reasoning
from ...tools.syntax import AnswerReader, Tool, ToolChoice, ToolSyntax
from ..errors import ApiError
from ..fields.tokenization import TokenizeRequest
from ..fields.tools import NamedTool
from ..request import ChatRequest, GenerationRequest


@dataclass(frozen=True)
class AnswerForm:
    """The form of the answers to one prompt.

    Attributes:
        syntax: of tool calls; None if the answer has none.
        choice: which calls it may have.
        thinking: whether the answer may begin with thoughts.
        begun: whether the prompt has begun them.
    """

    syntax: ToolSyntax | None = None
    choice: ToolChoice | None = None
    thinking: bool = False
    begun: bool = False

    def reader(self) -> AnswerReader | None:
        """A reader of one answer; None if it is text only."""
        return choose.answer_reader(self.syntax, self.choice, thinking=self.thinking, begun=self.begun)

    def markers(self) -> tuple[str, ...]:
        """The texts that the reader looks for, and that may be special tokens."""
        thoughts = (reasoning.BEGIN, reasoning.END) if self.thinking else ()
        return (*(self.syntax.markers if self.syntax is not None else ()), *thoughts)

    def grammar_text(self, token_ids: Mapping[str, int]) -> str:
        """The grammar of the answer, for markers that are special tokens with these ids."""
        if self.syntax is None or self.choice is None:
            raise ValueError("an answer without tool calls has no grammar")
        return choose.answer_grammar(self.syntax, self.choice, token_ids, thinking=self.thinking, begun=self.begun)

    def grammar(self, tokenizer: GrammarTokenizer) -> LarkGrammar:
        """Compile the grammar. Raises UserError that names the tool whose parameters are refused."""
        tools = () if self.choice is None else self.choice.tools
        try:
            return LarkGrammar(self.grammar_text, self.markers(), tokenizer, "tools")
        except Exception:
            for tool in tools:
                JsonSchema(tool.parameters, tokenizer, f"tools: the parameters of {tool.name!r}")
            raise


def answer_form(request: GenerationRequest, tokenizer: Tokenizer, prompt: object, parser: str | None) -> AnswerForm:
    """The form of the answers to a request.

    Args:
        request: the request.
        tokenizer: gives the chat template.
        prompt: the text that the template has written.
        parser: the name of a tool syntax; None takes the one of the template.

    Raises:
        ApiError: the request has tools that this model cannot call.
    """
    if not isinstance(request, ChatRequest):
        return AnswerForm()
    template = tokenizer.template_source(bool(request.tools))
    thinking = choose.thinks(template)
    begun = thinking and isinstance(prompt, str) and choose.thoughts_begun(prompt)
    choice = tool_choice(request)
    if choice is None:
        return AnswerForm(thinking=thinking, begun=begun)
    syntax = choose.syntax_of(template) if parser is None else choose.syntax_named(parser)
    if syntax is None:
        raise ApiError(
            400,
            "tools: this server does not know how the model's chat template writes calls. Leave tools out, or start "
            "the server with --tool-parser",
            param="tools",
        )
    return AnswerForm(syntax, choice, thinking, begun)


def check_tools(request: ChatRequest | TokenizeRequest, tokenizer: Tokenizer) -> None:
    """Raise ApiError if a request has tools, or calls in its messages, and the chat template has none."""
    calls = any(message.tool_calls for message in request.messages or ())
    if (request.tools or calls) and not choose.has_tools(tokenizer.template_source(bool(request.tools))):
        raise ApiError(
            400,
            "this model's chat template has no tools. Leave tools out, or start the server with a template that has "
            "them: --chat-template FILE",
            param="tools" if request.tools else "messages",
        )


def can_call_tools(tokenizer: Tokenizer, parser: str | None) -> bool:
    """Whether the chat template has tools, in a syntax that is known. parser: the name of a syntax."""
    try:
        template = tokenizer.template_source(True)
    except UserError:
        return False
    return choose.has_tools(template) and (parser is not None or choose.syntax_of(template) is not None)


def prompt_tools(request: ChatRequest) -> list[Tool]:
    """The tools that the prompt describes: none with tool_choice "none". Raises ApiError for two of one name."""
    tools = [definition.as_tool() for definition in request.tools]
    for tool in tools:
        schema_text(tool.parameters, f"tools: the parameters of {tool.name!r}")
    names = [tool.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ApiError(400, f"tools has two functions with the name {twice!r}. Rename one", param="tools")
    return [] if request.tool_choice == "none" else tools


def tool_choice(request: ChatRequest) -> ToolChoice | None:
    """Which calls the answer may have; None for none. Raises ApiError for a choice that no tool fits."""
    tools, chosen = prompt_tools(request), request.tool_choice
    named = isinstance(chosen, NamedTool)
    if not tools:
        if chosen in ("none", "auto"):
            return None
        raise ApiError(400, "tool_choice needs tools. Send them, or leave tool_choice out", param="tool_choice")
    if isinstance(chosen, NamedTool):
        tools = [tool for tool in tools if tool.name == chosen.function.name]
        if not tools:
            raise ApiError(
                400, "tool_choice names a function that tools does not have. Use one of them", param="tool_choice"
            )
    if request.response_format.type != "text":
        raise ApiError(
            400, 'response_format does not go with tools. Leave one out, or set tool_choice to "none"', param="tools"
        )
    return ToolChoice(tools, required=named or chosen == "required", parallel=request.parallel_tool_calls and not named)
