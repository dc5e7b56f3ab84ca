"""The methods of the model for conversations: chat, stream_chat, and the two halves of a turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..engine.engine import Engine
from ..errors import UserError
from ..generation.config import GenerationConfig
from ..generation.output import ChatAnswer
from ..generation.stream import Stream
from ..text.tokenizer import Tokenizer
from .transcript import Transcript, Transcripts

Messages = Sequence[Mapping[str, Any]]  # [{"role": ..., "content": ...}, ...]


class ChatMethods:
    """The methods of LlamaForCausalLM for conversations. They apply the artifact's chat template."""

    engine: Engine
    generation_config: GenerationConfig
    transcripts: Transcripts
    if TYPE_CHECKING:

        @cached_property
        def tokenizer(self) -> Tokenizer:
            """The artifact's tokenizer."""

        def stream(self, prompt: str | Sequence[int], **settings: Any) -> Stream:
            """Continue one prompt, and yield a Piece per new token."""

    def chat(self, messages: str | Messages, **settings: Any) -> ChatAnswer:
        """Answer a conversation at once; arguments and errors are those of `stream_chat`.

        To continue the conversation: `messages.append(answer.message)`.
        """
        pieces = list(self.stream_chat(messages, **settings))
        last = pieces[-1]
        if last.finish_reason is None or last.timings is None:
            raise RuntimeError("the stream has not ended")
        text = "".join(piece.text for piece in pieces)
        return ChatAnswer(text.strip() if last.tool_calls else text, last.finish_reason, last.timings, last.tool_calls)

    def stream_chat(
        self,
        messages: str | Messages,
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Stream:
        """Answer a conversation with the artifact's chat template, and yield a Piece per new token.

        If the conversation continues from an earlier answer, only the rest is computed.

        Args:
            messages: [{"role": "user", "content": "..."}, ...], the whole conversation, oldest first; a string is one
                message of the user.
            tools: Python functions with type hints and docstrings, or JSON schemas of functions. The last piece has
                the calls that the answer makes, and the text is without them.
            chat_template_kwargs: further variables of the chat template.
            settings: those of `generate`, checked at once. Without a limit the answer may fill the context.

        Raises:
            UserError: the artifact has no chat template, or one without tools; `messages` is no list of messages; the
                template refuses them, or they leave no room for an answer; or a tool cannot be described.
            TypeError: an unknown keyword.
        """
        if not tools:
            return self.stream_turn(self.turn(messages, tools, chat_template_kwargs), **settings)
        from ..tools import choose  # imported late, so that a model loads without it
        from ..tools.functions import CallCollector, read_tools
        from ..tools.syntax import ToolChoice

        described, known, functions = read_tools(tools)
        template = self.tokenizer.template_source(with_tools=True)
        if not choose.has_tools(template):
            raise UserError(
                "this model's chat template has no tools. Leave tools out, or use a template with tools: "
                "model.tokenizer.use_chat_template(FILE)"
            )
        turn = self.turn(messages, described, chat_template_kwargs)
        stream = self.stream_turn(turn, **settings)
        syntax = choose.syntax_of(template)
        if syntax is not None:  # the text of an unknown syntax is the caller's to read
            thinking, begun = choose.thinks(template), choose.thoughts_begun(turn.text)
            reader = choose.answer_reader(syntax, ToolChoice(known), thinking=thinking, begun=begun)
            if reader is not None:
                stream.read_calls(CallCollector(reader, functions))
        return stream

    def turn(
        self, messages: str | Messages, tools: Sequence[Any] | None = None, variables: Mapping[str, Any] | None = None
    ) -> Transcript:
        """Return the prompt that `stream_chat` makes of these messages, as token ids that the cache may hold in part.

        Args:
            messages: as in `stream_chat`.
            tools: for the chat template.
            variables: further variables of the chat template.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.transcripts.begin(self.tokenizer, messages, {"tools": tools, **(variables or {})})

    def stream_turn(self, turn: Transcript, **settings: Any) -> Stream:
        """Stream the answer to a turn, and record it there.

        Args:
            turn: what `turn` returned.
            settings: as in `stream_chat`.
        """
        bases = (self.generation_config, settings.get("generation_config"), SimpleNamespace(**settings))
        if all(getattr(base, name, None) is None for base in bases for name in ("max_new_tokens", "max_length")):
            settings["max_new_tokens"] = self.engine.context
        stream = self.stream(turn.ids, **{"reuse_prefix": True, **settings})
        stream.prefix_ids = ()  # an answer does not continue the text of the messages
        stream.listeners.append(turn.record)
        self.transcripts.keep(turn)
        return stream
