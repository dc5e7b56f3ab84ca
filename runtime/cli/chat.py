"""`edgellama chat`: a conversation in the terminal, or one message per line from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shlex
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ..conversation.chat import Chat
from ..errors import UserError
from ..generation.output import Piece
from ..generation.stream import Stream
from ..progress import progress
from .options import adapt, add_grammar, add_lora, add_model, add_sampling, grammar, load, sampling_settings

HELP = """\
/reset       start a new conversation with the same system message
/save FILE   write the conversation and its computed state to a file
/load FILE   continue a conversation from a file
/help        show this list
/exit        end the chat (also Ctrl-D); Ctrl-C ends only the current answer"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `chat`."""
    parser.description = (
        "Talk with a model, message by message. If standard input is not a terminal, each line is a "
        "message. Answers go to standard output, everything else to standard error. Commands in a chat:"
    )
    parser.epilog = HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_model(parser)
    add_lora(parser)
    parser.add_argument("--system", help="a system message")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="limit per answer; default: what the context still holds"
    )
    add_sampling(parser)
    add_grammar(parser)
    parser.set_defaults(run=run_chat)


def run_chat(options: argparse.Namespace) -> None:
    """Run the command until the input ends. In a pipe the first error ends the chat; a terminal shows it and goes on.

    Raises UserError before the first message is read if the artifact has no chat template or an option is out of range.
    """
    settings = {**sampling_settings(options), "max_new_tokens": options.max_new_tokens}
    model = load(options)
    adapt(model, options)
    settings["logits_processor"] = grammar(options, model)
    chat = Chat(model, options.system)
    # Check the chat template and the settings now, with a sample message that is never computed.
    model.stream(model.turn([*chat.messages, {"role": "user", "content": "?"}]).ids, **settings)
    terminal = sys.stdin.isatty()
    if terminal:
        print("/help lists the commands; Ctrl-C ends an answer, Ctrl-D the chat", file=sys.stderr)
    for line in terminal_lines() if terminal else sys.stdin:
        text = line.strip()
        try:
            if text in ("/exit", "/quit"):
                break
            if text.startswith("/"):
                print(run_slash_command(chat, text), file=sys.stderr)
            elif text:
                answer(chat, text, settings)
        except UserError as error:
            if not terminal:
                raise
            print(f"error: {error}", file=sys.stderr)


def terminal_lines() -> Iterator[str]:
    """Lines that the user types. If Python has readline, lines can be edited and there is a history."""
    with contextlib.suppress(ImportError):  # readline does not exist on every platform
        importlib.import_module("readline")  # the import alone makes input() use it
    while True:
        if not sys.stdout.isatty():  # keep the prompt out of redirected answers
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            yield input("> " if sys.stdout.isatty() else "")
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends the chat)", file=sys.stderr)


def run_slash_command(chat: Chat, text: str) -> str:
    """Run a line that begins with /, and return the message for the user.

    Raises UserError for an unknown command and for wrong arguments.
    """
    try:
        name, *arguments = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text}: {error}. Close the quotes") from error
    if name in ("/save", "/load"):
        if len(arguments) != 1:
            raise UserError(f"{name} takes one file name, and {len(arguments)} are given")
        (chat.save if name == "/save" else chat.load)(arguments[0])
        return f"[{len(chat.messages)} messages {'saved to' if name == '/save' else 'loaded from'} {arguments[0]}]"
    if name not in ("/reset", "/help"):
        raise UserError(f"{name} is not a command. /help lists the commands")
    if arguments:
        raise UserError(f"{name} takes no argument, and {arguments[0]!r} is given")
    if name == "/help":
        return HELP
    chat.reset()
    return "[a new conversation]"


def answer(chat: Chat, text: str, settings: dict[str, Any]) -> None:
    """Send `text` to the model, print the answer while it is generated, then one line of timings."""
    stream = chat.ask(text, **settings)
    if chat.dropped:
        print(f"[the context is full: the oldest {chat.dropped} messages are dropped]", file=sys.stderr)
    with stream, cancel_on_ctrl_c(stream):
        with progress("Reading", plain=False):
            last = next(stream)
        print(last.text, end="", flush=True)
        for last in stream:
            print(last.text, end="", flush=True)
    print(flush=True)
    print(f"[{timing_line(last)}]", file=sys.stderr)


def timing_line(last: Piece) -> str:
    """Why the answer ended, and its timings. Raises ValueError if `last` is not the last piece of its stream."""
    timings = last.timings
    if timings is None:
        raise ValueError("the stream has not ended")
    computed = timings.prompt_tokens - timings.cached_tokens
    decode = f"; decode {timings.decode / timings.decode_steps * 1e3:.1f} ms/token" if timings.decode_steps else ""
    return f"{last.finish_reason}; prefill {computed} tokens in {timings.prefill * 1e3:.0f} ms{decode}"


@contextlib.contextmanager
def cancel_on_ctrl_c(stream: Stream) -> Iterator[None]:
    """Inside the block, Ctrl-C cancels the stream. A second Ctrl-C raises KeyboardInterrupt."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        stream.cancel()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
