"""`edgellama COMMAND`: export a model, inspect and check artifacts, run them, and prepare a board.

Answers go to standard output, everything else to standard error. Exit status:
- 0: success
- 2: an error that the user can fix (one message; --debug adds a traceback)
- 130: Ctrl-C
- 141: the reader of standard output has gone away
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from .errors import LogitsError, UserError, explain_os_error, os_error_of, printable
from .instructions import check_cpu

if TYPE_CHECKING:
    # Imported where it is used. Until `main` runs, Ctrl-C is a traceback, so this module imports little.
    import argparse
    from types import FrameType

OURS = ("edgellama", "exporter", "kernels", "runtime")
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


class Command(NamedTuple):
    """A command. Its module is imported only if the command runs: a board lacks the packages of the exporter.

    Attributes:
        module: the module whose `function` declares the arguments, and sets `run` to the function that runs the command
        help: one line; None hides the command
    """

    module: str
    help: str | None
    function: str = "add_arguments"


# The one place in the runtime that names the exporter.
COMMANDS = {
    "export": Command("edgellama.exporter.export", "write an artifact"),
    "plan": Command("edgellama.exporter.plan.command", "estimate the memory and the speed of a model before an export"),
    "inspect": Command("edgellama.exporter.inspect", "show the contents of an artifact"),
    "verify": Command("edgellama.exporter.proof.verify", "check the files of an artifact and its logits"),
    "check": Command("edgellama.cli.check", "check the files of an artifact by their hashes"),
    "evaluate": Command("edgellama.exporter.proof.evaluate", "measure perplexity and KL divergence on a text"),
    "generate": Command("edgellama.cli.generate", "answer one prompt"),
    "chat": Command("edgellama.cli.chat", "talk with a model"),
    "serve": Command("edgellama.serve.command", "answer over HTTP with OpenAI's API"),
    "bench": Command("edgellama.bench.command", "measure an artifact"),
    "convert": Command("edgellama.exporter.ascend.convert", "compile an artifact of an Ascend target with CANN"),
    "build-kernels": Command(
        "edgellama.exporter.ascend.build_kernels", "build and install the operator package with CANN"
    ),
    "board-check": Command(
        "edgellama.exporter.ascend.board.check", "run this first on a board: versions, and a tiny model end to end"
    ),
    "board-probe": Command("edgellama.exporter.ascend.board.tiny_model", "export the tiny model of board-check"),
    "artifact-folder": Command("edgellama.exporter.export", None, "add_folder_arguments"),
}


def parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of the command line `words`. Only the command that they name declares its arguments."""
    import argparse

    top = argparse.ArgumentParser(
        prog="edgellama", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        # Without `help`, argparse leaves a command out of its list. `help=None` would list it.
        subparser = commands.add_parser(name, help=command.help) if command.help else commands.add_parser(name)
        subparser.add_argument("--debug", action="store_true", help="show tracebacks and the log of native libraries")
        if name == chosen:
            getattr(import_module(command.module), command.function)(subparser)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with interrupt_ends_process():
            _replace_undecodable()
            check_cpu()
            options = parser(words).parse_args(words)
        options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # so that a full disk is reported here, and not while Python ends
    except BrokenPipeError:  # for example `| head`
        _discard_output()
        return 141  # 128 + SIGPIPE, as a shell reports it
    except BaseException as error:
        if _is_interrupt(error):
            _say("interrupted")
            return INTERRUPTED
        message = error_message(error)
        if message is None:
            raise
        if "--debug" in words:
            import traceback

            traceback.print_exc()
        _say(f"error: {message}")
        _discard_output()
        return 2
    return 0


def _say(line: str) -> None:
    """Print a line on standard error, if that is open and not full."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


@contextmanager
def interrupt_ends_process() -> Iterator[None]:
    """During the block Ctrl-C ends the process at once, with exit status 130.

    For work that leaves nothing behind, as imports do. An exception within an import may be lost, or become another one
    (an ImportError of native code, a traceback that an import hook prints).
    """
    try:
        earlier = signal.getsignal(signal.SIGINT)
        if earlier is not signal.default_int_handler:  # ignored, as under nohup, or the handler of an application
            yield
            return
        signal.signal(signal.SIGINT, _end_process)
    except ValueError:  # not the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def _end_process(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _is_interrupt(error: BaseException) -> bool:
    """Whether this is Ctrl-C, or an exception that a library raised in its place."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _replace_undecodable() -> None:
    # Output replaces characters that the terminal cannot show. Input keeps bytes that are not UTF-8 as surrogates: the
    # tokenizer reports them with a clear message.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def error_message(error: BaseException) -> str | None:
    """Return the message for an error that the user can fix; None for a defect of ours."""
    if isinstance(error, (UserError, LogitsError)):
        return printable(str(error))
    if not isinstance(error, Exception):  # SystemExit of argparse
        return None
    if (cause := os_error_of(error)) is not None:
        return explain_os_error(cause)
    return _missing_package(error) if isinstance(error, ModuleNotFoundError) else None


def _discard_output() -> None:
    """Write what is left for standard output, or discard it if that fails. Python would report it at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _missing_package(error: ModuleNotFoundError) -> str | None:
    """The message for a package that is not installed; None if the missing module is ours, which is a defect."""
    package = (error.name or "").partition(".")[0]
    if package in ("", *OURS):
        return None
    return (
        f"the Python package {package} is not installed. Install the packages that the exporter needs, in a "
        'checkout: pip install ".[export]"'
    )


if __name__ == "__main__":
    sys.exit(main())
