"""python -m runtime COMMAND ARTIFACT: what an exported artifact can do, from the command line.

Answers go to standard output, everything else to standard error. Exit status: 0; 2 for what the user can mend (one
clear message, with --debug a traceback too); 130 after Ctrl-C; 141 when nobody reads the answer.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence

from runtime import chat_command, generate_command
from runtime.bench import command as bench_command
from runtime.errors import UserError
from runtime.serve import command as serve_command


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m runtime", description="Run an exported artifact.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (generate_command, chat_command, bench_command, serve_command):
        command.add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parser().parse_args(arguments)
    # A terminal that cannot show a character is no reason to fail; bytes that are not UTF-8 are told by the tokenizer.
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
    except BrokenPipeError:  # `| head`: nobody reads on; what Python flushes at exit must find an open end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as the shell counts it
    return 0


if __name__ == "__main__":
    sys.exit(main())
