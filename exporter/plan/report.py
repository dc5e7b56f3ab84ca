"""Prints a plan as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..tables import new_table, size
from .memory import COPIES_NOTE

MS = 1e-3


def show(found: dict[str, Any]) -> None:
    """Print the tables on standard output."""
    console = Console()
    console.print(_head(found), highlight=False)
    for table in tables(found):
        console.print(table)
    for line in notes(found):
        console.print(line, highlight=False, markup=False)


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the tables of a plan. found: the object that --json prints"""
    made = [_memory(found), _passes(found), _boards(found)]
    if any(board["times"] for board in found["boards"]):
        made.append(_estimates(found))
    return made if found["measured"] is None else [*made, *_measured(found["measured"])]


def notes(found: dict[str, Any]) -> list[str]:
    """Return the lines below the tables: how the times follow, the sources and the assumptions."""
    lines = []
    if any(board["times"] for board in found["boards"]):
        lines.append(
            "Times are lower bounds from published peaks. No real program reaches them, and no board has been tested."
        )
        lines.append(
            "Estimated: from the performance model of the kernels (kernels/ascend/MODEL.md), and assumptions about "
            "launches and products of many rows."
        )
    else:
        lines.append("The times of a host need a measurement: --measured FILE, written by `edgellama bench --json`.")
    sources = dict.fromkeys(source for board in found["boards"] for source in board["sources"])
    if sources:
        lines.append(f"Sources: {', '.join(sources)}")
    for assumed in dict.fromkeys(text for board in found["boards"] for text in board["assumed"]):
        names = [board["name"] for board in found["boards"] if assumed in board["assumed"]]
        who = "all" if len(names) == len(found["boards"]) else "; ".join(names)
        lines.append(f"Assumed ({who}): {assumed}")
    return lines


def _head(found: dict[str, Any]) -> str:
    model = found["model"]
    return escape(
        f"{model['name']}: {model['parameters'] / 1e6:,.0f} million parameters, {model['layers']} layers; target "
        f"{found['target']}, weights {found['weights']}, cache {found['cache']}, batch {found['batch']}, "
        f"context {found['context']:,}"
    )


def _numbers_table(title: str, *columns: str) -> Table:
    """Return a table with names in its first column and numbers in the others."""
    return new_table(title, *columns, numbers=range(1, len(columns)))


def _memory(found: dict[str, Any]) -> Table:
    memory = found["memory"]
    table = new_table("Memory", "", "", "", numbers=(1,), header=False)
    table.add_row("weights", size(memory["weights"]), "one copy, as on disk")
    if memory["copies"]:
        table.add_row("added by loading", size(memory["copies"]), COPIES_NOTE)
    table.add_row("cache", size(memory["cache"]), f"{found['batch']} x {found['context']:,} tokens")
    table.add_row(
        "workspace", size(memory["workspace"]), f"estimated, at the bucket of {found['buckets'][-1]:,} tokens"
    )
    if memory["gears"]:
        table.add_row("gears", size(memory["gears"]), "workspace of the other buckets, if the device shares none")
    table.add_row("libraries", size(memory["libraries"]), "Python, numpy, MindSpore Lite")
    table.add_row("total", size(memory["total"]), "", style="bold")
    return table


def _name(work: dict[str, Any]) -> str:
    if work["bucket"] == 1:
        return f"decode after {work['start']:,}"
    return f"prefill of {work['bucket']:,}"


def _passes(found: dict[str, Any]) -> Table:
    table = _numbers_table("A pass of all rows", "", "weights read", "cache read", "operations", "operations per byte")
    for work in found["passes"]:
        table.add_row(
            _name(work),
            size(work["weight_bytes"]),
            size(work["cache_bytes"]),
            f"{work['flops'] / 1e9:,.2f} G",
            f"{work['flops'] / work['bytes']:,.1f}",
        )
    return table


def _boards(found: dict[str, Any]) -> Table:
    timed = any(board["times"] for board in found["boards"])
    columns = ["board", "share of memory", "fits", "largest context"]
    if timed:
        columns += ["GB/s", "TFLOPS", *(f"{_name(work)}, ms" for work in (found["passes"][0], found["passes"][-1]))]
        columns.append("tokens/s")
    table = _numbers_table("Boards", *columns)
    for board in found["boards"]:
        cells = [
            escape(board["name"]),
            f"{found['memory']['total'] / board['available_bytes']:.0%}",
            "yes" if board["fits"] else "no",
            f"{board['largest_context']:,}" if board["largest_context"] else "none",
        ]
        if timed:
            first, last = board["times"][0], board["times"][-1]
            cells += [f"{board['bandwidth'] / 1e9:,.1f}", f"{board['flops'] / 1e12:,.0f}"]
            cells += [f"{first['seconds'] / MS:,.1f}", f"{last['seconds'] / MS:,.1f}"]
            cells.append(f"{first['tokens_per_second']:,.1f}")
        table.add_row(*cells)
    return table


def _estimates(found: dict[str, Any]) -> Table:
    first, last = found["passes"][0], found["passes"][-1]
    table = _numbers_table(
        "Estimated speed, not measured", "board", f"{_name(first)}, tokens/s", f"first token of {last['bucket']:,}, s"
    )
    for board in found["boards"]:
        if board["times"]:
            slow, fast = (found["batch"] / one for one in board["times"][0]["estimated_seconds"])
            late, early = board["times"][-1]["estimated_seconds"]
            table.add_row(escape(board["name"]), f"{slow:,.1f} to {fast:,.1f}", f"{early:,.2f} to {late:,.2f}")
    return table


def _measured(measured: dict[str, Any]) -> list[Table]:
    sizes = _numbers_table("Sizes, compared with the artifact", "", "predicted, bytes", "found, bytes")
    for entry in measured["sizes"]:
        sizes.add_row(entry["what"], f"{entry['predicted']:,}", f"{entry['found']:,}")
    title = f"Times at the measured {measured['bandwidth'] / 1e9:.1f} GB/s and {measured['flops'] / 1e9:,.0f} GFLOPS"
    times = _numbers_table(title, "", "predicted, ms", "measured, ms", "measured / predicted")
    for entry in measured["times"]:
        times.add_row(
            entry["what"], f"{entry['predicted'] / MS:.2f}", f"{entry['found'] / MS:.2f}", f"{entry['ratio']:.2f}"
        )
    return [sizes, times]
