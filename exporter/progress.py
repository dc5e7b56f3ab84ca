"""What the command line shows while it works: a line per stage, a bar where the size is known. On standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True)

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """A spinner while it runs, its time when it is done."""
        began = time.monotonic()
        with self.console.status(what):
            yield
        self.console.print(f"{what}: {time.monotonic() - began:.1f} s", highlight=False)

    @contextmanager
    def running(self, what: str) -> Iterator[Callable[[str], None]]:
        """As stage, for another program: the function it yields shows the latest line that it printed."""
        began = time.monotonic()
        with self.console.status(what) as status:
            yield lambda line: status.update(f"{what}\n{escape(line.strip()[: self.console.width - 1])}")
        self.console.print(f"{what}: {time.monotonic() - began:.1f} s", highlight=False)

    @contextmanager
    def bytes(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar over `total` bytes; the function it yields takes how many more are done."""
        began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Bars(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task(what, total=total)
            yield lambda count: bars.advance(task, count)
        seconds = time.monotonic() - began
        self.console.print(f"{what}: {total / 1e6:,.0f} MB in {seconds:.1f} s", highlight=False)
