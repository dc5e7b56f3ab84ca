"""The tables that `inspect` and `plan` print, and byte counts as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table


def size(count: float) -> str:
    """Return a byte count with its decimal unit: 1,536 -> "1.54 kB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.2f} GB"


def new_table(title: str, *columns: str, numbers: Sequence[int] = (), header: bool = True) -> Table:
    """Return an empty table.

    Args:
        columns: the headings
        numbers: the indices of the columns that hold numbers; they are aligned right
        header: False hides the headings
    """
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=header,
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
    return table


def facts_table(title: str, facts: Iterable[tuple[str, object]]) -> Table:
    """Return a table of names and values; None is shown as "-"."""
    table = new_table(title, "", "", header=False)
    for name, value in facts:
        table.add_row(name, escape("-" if value is None else str(value)))
    return table
