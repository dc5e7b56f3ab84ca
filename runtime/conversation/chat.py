"""A conversation with a model: its messages, what happens when they outgrow the context, and a file to save them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact.json_reader import parse_object
from ..errors import UserError
from ..generation.output import Piece
from ..generation.stream import Stream
from .session import Session
from .transcript import Transcript

if TYPE_CHECKING:
    from ..model import LlamaForCausalLM

NOTE = "chat"  # the key of the messages in a session file's metadata
LEAST_ROOM = 1 / 8  # of the context, for an answer; with less room the oldest turns are dropped ...
DROPPED_TO = 1 / 2  # ... until the rest takes at most this much, so that it does not happen every turn


class Chat:
    """Messages to and from a model, oldest first. Only the new message of a turn is computed.

    A conversation that outgrows the context loses its oldest turns, but keeps its system message.

    Attributes:
        model: answers.
        messages: [{"role": ..., "content": ...}, ...].
        dropped: how many messages the latest `ask` dropped.
    """

    def __init__(self, model: LlamaForCausalLM, system: str | None = None) -> None:
        """Begin a conversation.

        Args:
            model: answers.
            system: a system message.
        """
        self.model = model
        self.messages: list[dict[str, Any]] = []
        self.dropped = 0
        self._turn: Transcript | None = None
        self._adapter = 0  # the number of that of the latest answer
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    def ask(self, text: str, **settings: Any) -> Stream:
        """Send a message of the user, and yield the answer as a Piece per token.

        The pieces taken from the stream become part of `messages`. If the stream is cancelled before its first token,
        the question is removed.

        Args:
            text: the message.
            settings: those of `LlamaForCausalLM.generate`.

        Raises:
            UserError: the message is empty or too long, or a setting does not fit.
            TypeError: an unknown keyword.
        """
        if not text.strip():
            raise UserError("the message is empty. Write something")
        before = self.messages[:-1] if self.messages and self.messages[-1]["role"] == "user" else self.messages
        messages = self._fitting([*before, {"role": "user", "content": text}])  # drops a question without an answer
        turn = self.model.turn(messages)
        stream = self.model.stream_turn(turn, **settings)
        self.dropped = len(before) + 1 - len(messages)
        self.messages, self._turn, self._adapter = messages, turn, stream.adapter
        stream.listeners.append(self._record)
        return stream

    def reset(self) -> None:
        """Begin a new conversation with the same system message."""
        self.messages = [message for message in self.messages if message["role"] == "system"]
        self._turn = None

    def save(self, path: str | Path) -> None:
        """Write messages and cache to a file.

        Raises:
            UserError: there is no message yet, or the file cannot be written.
        """
        if self._turn is None:
            raise UserError("nothing has been said yet, so there is nothing to save")
        session = Session(self.model)
        session.ids, session.adapter = list(self._turn.ids), self._adapter
        turn = {name: value for name, value in dataclasses.asdict(self._turn).items() if name != "ids"}
        session.save(path, {NOTE: json.dumps({"messages": self.messages, "turn": turn})})

    def load(self, path: str | Path) -> None:
        """Replace this conversation by one that `save` wrote.

        Raises:
            UserError: the file belongs to another artifact, is damaged, or holds no chat.
        """
        session = Session(self.model)
        notes = session.load(path)
        try:
            held = parse_object(notes[NOTE])
            messages = [dict(message) for message in held["messages"]]
            turn = Transcript(ids=session.ids, **held["turn"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: a session, but not of a chat ({error!r}). Load it with model.session()"
            ) from error
        self.model.transcripts.keep(turn)
        self.messages, self._turn, self._adapter = messages, turn, session.adapter

    def _fitting(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages without as many of the oldest turns as leave room for an answer."""
        context = self.model.artifact.manifest.context
        if context - len(self.model.turn(messages).ids) >= LEAST_ROOM * context:
            return messages
        first = next(index for index, message in enumerate(messages) if message["role"] != "system")
        while len(self.model.turn(messages).ids) > DROPPED_TO * context:
            later = [i for i in range(first + 1, len(messages)) if messages[i]["role"] == "user"]
            if not later:
                break  # the new message alone is too long
            messages = messages[:first] + messages[later[0] :]
        return messages

    def _record(self, piece: Piece) -> None:
        if self.messages[-1]["role"] != "assistant":
            if piece.id is None:
                self.messages.pop()
                return
            self.messages.append({"role": "assistant", "content": ""})
        self.messages[-1]["content"] += piece.text
