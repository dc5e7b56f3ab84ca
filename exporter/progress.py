"""What the command line shows while it works, on standard error: one line per stage, and a bar if the size is known.

It uses rich. A board that converts and runs board-check does not need rich: without it the same lines appear as plain
text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class PlainConsole:
    """Takes the place of rich's Console where rich is not installed: prints the text without colours or spinners."""

    def print(self, text: Any, *, highlight: bool = True, markup: bool = True) -> None:
        """Print one line. highlight, markup: accepted as by rich, without effect."""
        print(text, file=sys.stderr, flush=True)


class Progress:
    """Shows stages, bars and tables. console: where to; None is standard error."""

    def __init__(self, console: Console | PlainConsole | None = None):
        self.console = console or _standard_error()

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Show a spinner while the block runs, and its time when it is done."""
        with self.running(what):
            yield

    @contextmanager
    def running(self, what: str) -> Iterator[Callable[[str], None]]:
        """The same as stage, for another program: call the function that it yields with each line of its output."""
        began = time.monotonic()
        if isinstance(self.console, PlainConsole):
            self.console.print(f"{what} ...")
            yield lambda line: None
        else:
            from rich.markup import escape

            width = self.console.width - 1
            with self.console.status(what) as status:
                yield lambda line: status.update(f"{what}\n{escape(line.strip()[:width])}")
        self.console.print(f"{what}: {time.monotonic() - began:.1f} s", highlight=False)

    @contextmanager
    def bytes(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar over `total` bytes: call the function that it yields with the count of bytes just done."""
        began = time.monotonic()
        if isinstance(self.console, PlainConsole):
            yield lambda count: None
        else:
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            with Bars(*columns, console=self.console, transient=True) as bars:
                task = bars.add_task(what, total=total)
                yield lambda count: bars.advance(task, count)
        seconds = time.monotonic() - began
        self.console.print(f"{what}: {total / 1e6:,.0f} MB in {seconds:.1f} s", highlight=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; without rich, each row as one line per column, behind the column's name."""
        if isinstance(self.console, PlainConsole):
            for row in rows:
                self.console.print("\n".join(f"{name}: {cell}" for name, cell in zip(columns, row, strict=True)) + "\n")
            return
        from rich.markup import escape
        from rich.table import Table

        table = Table(*columns, show_lines=True)
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)


def _standard_error() -> Console | PlainConsole:
    try:
        from rich.console import Console
    except ImportError:
        return PlainConsole()
    return Console(stderr=True)
