"""From events to the response object of /v1/responses, and to the events of its stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from ...text.tokenizer import Tokenizer
from ...tools.reasoning import PlainText
from ...tools.syntax import AnswerDelta, AnswerReader
from ..answers.parts import call_id
from ..responses import to_json, usage
from ..sequence import SequenceEvent, ServedSequence
from .request import ResponsesRequest


class OpenItem:
    """An item of the output that is being written.

    Attributes:
        kind: "reasoning", "message" or "function_call".
        index: its place in the output.
        value: the item; its text or arguments are filled in when it ends.
        text: what it has so far.
    """

    def __init__(self, kind: str, index: int, name: str = "") -> None:
        self.kind, self.index, self.text = kind, index, ""
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        self.value: dict[str, Any] = {"type": kind, "id": f"{prefix}_{secrets.token_hex(12)}", "status": "in_progress"}
        if kind == "message":
            self.value |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            self.value |= {"summary": [], "content": []}
        else:
            self.value |= {"call_id": call_id(), "name": name, "arguments": ""}

    def part(self, text: str) -> dict[str, Any]:
        """The only part of a message or of thoughts."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def ended(self, status: str) -> dict[str, Any]:
        """The complete item."""
        self.value["status"] = status
        if self.kind == "function_call":
            self.value["arguments"] = self.text
        else:
            self.value["content"] = [self.part(self.text)]
        return self.value


class ResponseObjectWriter:
    """Writes one response. A stream is the same events with the response object first and last."""

    def __init__(self, request: ResponsesRequest, tokenizer: Tokenizer, reader: AnswerReader | None) -> None:
        """Args:
        request: what is answered.
        tokenizer: counts the tokens of thoughts.
        reader: separates thoughts and tool calls from the text; None for an answer that is text only.
        """
        self._reader = reader or PlainText()
        self._tokenizer = tokenizer
        self._reason: str | None = None  # why the answer ended
        self._open: OpenItem | None = None
        self._output: list[dict[str, Any]] = []
        self._number = 0  # of the next event
        text_format = request.text.format.model_dump(by_alias=True, exclude_none=True)
        choice = request.tool_choice
        self._response: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions or None,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata,
            "model": request.model,
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": {"format": {"type": "text"} if request.text.format.type == "text" else text_format},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in request.tools],
            "top_p": request.top_p,
            "truncation": request.truncation,
            "usage": None,
        }

    def complete(self, events: Sequence[Sequence[SequenceEvent]], sequences: Sequence[ServedSequence]) -> bytes:
        """The complete response."""
        (mine,) = events
        self._events(mine)
        return to_json(self._finished(mine[-1].finish_reason, sequences))

    def first_frames(self, count: int) -> bytes:
        """The events that begin a stream."""
        return b"".join(
            self._frame(kind, response=self._response) for kind in ("response.created", "response.in_progress")
        )

    def next_frames(self, index: int, events: Sequence[SequenceEvent]) -> bytes:
        """The events that these events of the sequence add."""
        self._reason = events[-1].finish_reason
        return b"".join(self._events(events))

    def last_frames(self, sequences: Sequence[ServedSequence]) -> bytes:
        """The event that ends a stream."""
        response = self._finished(self._reason, sequences)
        return self._frame(f"response.{response['status']}", response=response)

    def error_frames(self, body: dict[str, Any]) -> bytes:
        """The event that ends a stream that has failed. body: OpenAI's error object."""
        error = body["error"]
        return self._frame("error", code=error["code"], message=error["message"], param=error["param"])

    def _events(self, events: Sequence[SequenceEvent]) -> list[bytes]:
        text, reason = "".join(event.text for event in events), events[-1].finish_reason
        deltas = list(self._reader.feed(text)) if text else []
        if reason is not None:
            deltas += self._reader.end()
        frames = [frame for delta in deltas for frame in self._delta(delta)]
        if reason is not None:
            if not self._output and self._open is None:
                frames += self._begin("message")
            frames += self._end("incomplete" if reason == "length" else "completed")
        return frames

    def _delta(self, delta: AnswerDelta) -> list[bytes]:
        frames: list[bytes] = []
        for kind, text in (("reasoning", delta.reasoning), ("message", delta.content)):
            if text:
                if self._open is None or self._open.kind != kind:
                    frames += self._begin(kind)
                frames += self._add(text)
        if delta.call is not None:
            if delta.name:
                frames += self._begin("function_call", delta.name)
            if delta.arguments:
                frames += self._add(delta.arguments)
        return frames

    def _begin(self, kind: str, name: str = "") -> list[bytes]:
        frames = self._end("completed")
        item = self._open = OpenItem(kind, len(self._output), name)
        frames.append(self._frame("response.output_item.added", output_index=item.index, item=item.value))
        if kind != "function_call":
            frames.append(self._item_frame("response.content_part.added", part=item.part("")))
        return frames

    def _add(self, text: str) -> list[bytes]:
        item = self._open
        if item is None:
            raise RuntimeError("no item is open")
        item.text += text
        kinds = {"reasoning": "reasoning_text", "message": "output_text", "function_call": "function_call_arguments"}
        more: dict[str, Any] = {"logprobs": []} if item.kind == "message" else {}
        return [self._item_frame(f"response.{kinds[item.kind]}.delta", delta=text, **more)]

    def _end(self, status: str) -> list[bytes]:
        item = self._open
        if item is None:
            return []
        frames = []
        if item.kind == "function_call":
            name = item.value["name"]
            frames.append(self._item_frame("response.function_call_arguments.done", arguments=item.text, name=name))
        else:
            kind = "reasoning_text" if item.kind == "reasoning" else "output_text"
            more: dict[str, Any] = {"logprobs": []} if item.kind == "message" else {}
            frames.append(self._item_frame(f"response.{kind}.done", text=item.text, **more))
            frames.append(self._item_frame("response.content_part.done", part=item.part(item.text)))
        self._output.append(item.ended(status))
        frames.append(self._frame("response.output_item.done", output_index=item.index, item=item.value))
        self._open = None
        return frames

    def _item_frame(self, kind: str, **fields: Any) -> bytes:
        item = self._open
        if item is None:
            raise RuntimeError("no item is open")
        place = {"item_id": item.value["id"], "output_index": item.index}
        if item.kind != "function_call":
            place["content_index"] = 0
        return self._frame(kind, **place, **fields)

    def _frame(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + to_json(event) + b"\n\n"

    def _finished(self, reason: str | None, sequences: Sequence[ServedSequence]) -> dict[str, Any]:
        used = usage(sequences, 1)
        thoughts = "".join(item["content"][0]["text"] for item in self._output if item["type"] == "reasoning")
        thought_tokens = len(self._tokenizer.encode(thoughts, add_special_tokens=False))
        cut = reason == "length"
        return {
            **self._response,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._output,
            "usage": {
                "input_tokens": used["prompt_tokens"],
                "input_tokens_details": used["prompt_tokens_details"],
                "output_tokens": used["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": thought_tokens},
                "total_tokens": used["total_tokens"],
            },
        }
