"""`python -m runtime COMMAND ARTIFACT`: run an exported artifact from the command line.

Answers go to standard output, everything else to standard error. Exit status:
- 0: success
- 2: an error that the user can fix (one message; --debug adds a traceback)
- 130: Ctrl-C
- 141: the reader of standard output has gone away
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence

from .bench import command as bench_command
from .cli import chat, generate
from .errors import UserError
from .serve import command as serve_command


def parser() -> argparse.ArgumentParser:
    """The command line: one subcommand per command module."""
    top = argparse.ArgumentParser(prog="python -m runtime", description="Run an exported artifact.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (generate, chat, bench_command, serve_command):
        command.add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parser().parse_args(arguments)
    # Output replaces characters that the terminal cannot show. Input keeps bytes that are not UTF-8 as surrogates: the
    # tokenizer reports them with a clear message.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        options.run(options)
    except UserError as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # for example `| head`; Python flushes stdout at exit, so connect it to something open
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as a shell reports it
    return 0


if __name__ == "__main__":
    sys.exit(main())
