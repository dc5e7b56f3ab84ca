"""`python -m exporter COMMAND`: export a model, inspect and check artifacts, convert and test them for a board.

The module of each command declares its arguments. Exit status:
- 0: success
- 2: an error that the user can fix (one message; --debug adds a traceback)
- 130: Ctrl-C
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from edgellama.errors import UserError

from .progress import Progress

OURS = ("edgellama", "exporter", "kernels", "runtime")


@dataclass(frozen=True)
class Command:
    """A command of the exporter.

    module: the module whose `function` declares the arguments, and sets `run` to the function that runs the command
    help: one line; None hides the command
    """

    module: str
    help: str | None
    function: str = "add_arguments"


COMMANDS = {
    "export": Command("edgellama.exporter.export", "write an artifact"),
    "artifact-folder": Command("edgellama.exporter.export", None, "add_folder_arguments"),
    "convert": Command("edgellama.exporter.ascend.convert", "compile an artifact of an Ascend target with CANN"),
    "board-check": Command(
        "edgellama.exporter.ascend.board.check", "run this first on a board: versions, and a tiny model end to end"
    ),
    "board-probe": Command("edgellama.exporter.ascend.board.tiny_model", "export the tiny model of board-check"),
    "plan": Command("edgellama.exporter.plan.command", "estimate the memory and the speed of a model before an export"),
    "inspect": Command("edgellama.exporter.inspect", "show the contents of an artifact"),
    "verify": Command("edgellama.exporter.proof.verify", "check the files of an artifact and its logits"),
    "evaluate": Command("edgellama.exporter.proof.evaluate", "measure perplexity and KL divergence on a text"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in words
    try:
        arguments = _parser(words).parse_args(words)
        run: Callable[[argparse.Namespace, Progress], None] = arguments.run
        run(arguments, Progress())
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if debug or package in ("", *OURS):
            raise
        print(
            f"error: the Python package {package} is not installed. Install the packages that the exporter needs, in a "
            'checkout: pip install ".[export]"',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind", file=sys.stderr)
        return 130
    return 0


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser. Only the module of the command in `argv` is imported: a board lacks packages of the others."""
    parser = argparse.ArgumentParser(
        prog="python -m exporter", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        # Without `help`, argparse leaves a command out of its list. `help=None` would list it.
        subparser = commands.add_parser(name, help=command.help) if command.help else commands.add_parser(name)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == chosen:
            getattr(import_module(command.module), command.function)(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
