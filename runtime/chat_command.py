"""`python -m runtime chat`: a conversation in the terminal, or one message a line from a pipe."""

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

from runtime.chat import Chat
from runtime.errors import UserError
from runtime.model_options import add_model, load
from runtime.output import Piece
from runtime.progress import progress
from runtime.sampling_options import add_grammar, add_sampling, grammar, sampling
from runtime.stream import Stream

HELP = """\
/reset       begin anew, with the same system message
/save FILE   write the conversation to a file, with what was computed for it
/load FILE   go on with a conversation from a file
/help        this list
/exit        end (also Ctrl-D); Ctrl-C ends an answer only"""


def add_parser(commands: Any) -> None:
    """Add the command to the runtime's command line."""
    chat = commands.add_parser(
        "chat",
        help="talk with a model",
        description="Talk with a model, message by message. Where standard input is no terminal, each line is a "
        "message. Answers go to standard output, all else to standard error. Commands within a chat:",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(chat)
    chat.add_argument("--system", help="a system message")
    chat.add_argument("--max-new-tokens", type=int, metavar="N", help="of one answer; default: what the context holds")
    add_sampling(chat)
    add_grammar(chat)
    chat.set_defaults(run=run_chat)


def run_chat(options: argparse.Namespace) -> None:
    settings = {**sampling(options), "max_new_tokens": options.max_new_tokens}
    model = load(options)
    settings["logits_processor"] = grammar(options, model)
    chat = Chat(model, options.system)
    # A missing or refusing template is told at once, and so are settings out of range.
    model.stream(model.turn([*chat.messages, {"role": "user", "content": "?"}]).ids, **settings)
    terminal = sys.stdin.isatty()
    if terminal:
        print("/help lists the commands; Ctrl-C ends an answer, Ctrl-D the chat", file=sys.stderr)
    for line in typed() if terminal else sys.stdin:
        text = line.strip()
        try:
            if text in ("/exit", "/quit"):
                break
            if text.startswith("/"):
                print(command(chat, text), file=sys.stderr)
            elif text:
                answer(chat, text, settings)
        except UserError as error:
            if not terminal:
                raise
            print(f"error: {error}", file=sys.stderr)


def typed() -> Iterator[str]:
    """Lines from the terminal, with its editing and history where Python has readline."""
    with contextlib.suppress(ImportError):  # not on every platform
        importlib.import_module("readline")  # input() uses it from then on
    while True:
        if not sys.stdout.isatty():  # answers that go elsewhere go there alone
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            yield input("> " if sys.stdout.isatty() else "")
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends the chat)", file=sys.stderr)


def command(chat: Chat, text: str) -> str:
    """Do what a line that begins with / says, and return what to tell."""
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
        raise UserError(f"{name} is no command. /help lists them")
    if arguments:
        raise UserError(f"{name} takes nothing, and {arguments[0]!r} is given")
    if name == "/help":
        return HELP
    chat.reset()
    return "[a new conversation]"


def answer(chat: Chat, text: str, settings: dict[str, Any]) -> None:
    """Say `text`, print the answer as it comes, and a line of figures behind it."""
    stream = chat.ask(text, **settings)
    if chat.dropped:
        print(f"[the context is full: the oldest {chat.dropped} messages are dropped]", file=sys.stderr)
    with stream, interruptible(stream):
        with progress("Reading", plain=False):
            last = next(stream)
        print(last.text, end="", flush=True)
        for last in stream:
            print(last.text, end="", flush=True)
    print(flush=True)
    print(f"[{figures(last)}]", file=sys.stderr)


def figures(last: Piece) -> str:
    """Why the answer ended, and its timings."""
    timings = last.timings
    if timings is None:
        raise ValueError("the stream has not ended")
    computed = timings.prompt_tokens - timings.cached_tokens
    each = f"; decode {timings.decode / timings.decode_steps * 1e3:.1f} ms/token" if timings.decode_steps else ""
    return f"{last.finish_reason}; prefill {computed} tokens in {timings.prefill * 1e3:.0f} ms{each}"


@contextlib.contextmanager
def interruptible(stream: Stream) -> Iterator[None]:
    """Meanwhile Ctrl-C cancels the stream; a second one is a KeyboardInterrupt, should the first not help."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        stream.cancel()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
