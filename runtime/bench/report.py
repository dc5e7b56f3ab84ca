"""The report as text tables, and as a plot if matplotlib is installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .. import output_file
from ..errors import UserError

US, MS, MB, GB = 1e-6, 1e-3, 1e6, 1e9
PLOT = "a plot of this command"


def table(found: dict[str, Any]) -> str:
    """The report as text. A range after a median is from the fastest to the slowest repeat."""
    artifact, settings, versions, read = found["artifact"], found["settings"], found["versions"], found["bandwidth"]
    sections = [
        f"{artifact['name']}: {artifact['target']}, weights {artifact['weights_format']} "
        f"({artifact['weights_bytes'] / MB:,.0f} MB), cache {artifact['cache_dtype']}, batch {artifact['batch']}, "
        f"context {artifact['context']:,}",
        f"{found['machine']['cpu']}, {settings['threads']} threads, {settings['isa']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        f"medians of {settings['repeats']} repeats; read bandwidth {read['rate']['max'] / GB:.1f} GB/s "
        f"(median {read['rate']['median'] / GB:.1f}; {read['method']}, "
        f"{read['buffer_bytes'] / MB:,.0f} MB)",
        "",
        columns(["prefill", "rows", "ms", "min..max", "tokens/s"], [prefill_row(entry) for entry in found["prefill"]]),
        "",
        columns(
            ["decode at", "rows", "ms/step", "min..max", "in graph", "tokens/s", "GB/s", "of bandwidth"],
            [decode_row(entry) for entry in found["decode"]],
        ),
        "",
        columns(
            ["step outside the graph", "us", "min..max", "of a step", "128,256 scores, us"],
            [overhead_row(entry) for entry in found["step_overhead"]],
        ),
        "",
        *lookup_table(found["prompt_lookup"]),
        *summary_lines(found),
    ]
    return "\n".join(sections)


def prefill_row(entry: dict[str, Any]) -> list[str]:
    """The cells of a prefill entry."""
    times = entry["seconds"]
    return [
        f"{entry['prompt_tokens']:,} tokens",
        str(entry["rows"]),
        f"{times['median'] / MS:.1f}",
        span(times),
        f"{entry['tokens_per_second']:,.0f}",
    ]


def decode_row(entry: dict[str, Any]) -> list[str]:
    """The cells of a decode entry."""
    times = entry["seconds"]
    return [
        f"{entry['depth']:,} tokens",
        str(entry["rows"]),
        f"{times['median'] / MS:.2f}",
        span(times, 2),
        f"{entry['model_seconds']['median'] / MS:.2f}",
        f"{entry['tokens_per_second']:,.1f}",
        f"{entry['rate'] / GB:.1f}",
        f"{entry['bandwidth_share']:.0%}",
    ]


def lookup_table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The table of --lookup and an empty line; nothing without texts."""
    head = ["prompt lookup", "prompt", "tokens", "guesses right", "ms, plain", "ms", "gain", "min..max"]
    rows = [
        [
            entry["name"],
            f"{entry['prompt_tokens']:,}",
            str(entry["new_tokens"]),
            f"{entry['accepted_tokens']} of {entry['guessed_tokens']}",
            f"{entry['plain_seconds']['median'] / MS:.0f}",
            f"{entry['lookup_seconds']['median'] / MS:.0f}",
            f"{entry['gain']['median']:.2f}",
            f"{entry['gain']['min']:.2f}..{entry['gain']['max']:.2f}",
        ]
        for entry in entries
    ]
    return [columns(head, rows), ""] if rows else []


def overhead_row(entry: dict[str, Any]) -> list[str]:
    """The cells of a step_overhead entry."""
    times = entry["seconds"]
    return [
        entry["name"],
        f"{times['median'] / US:.0f}",
        f"{times['min'] / US:.0f}..{times['max'] / US:.0f}",
        f"{entry['share']:.1%}",
        f"{entry['large_vocabulary_seconds']['median'] / US:.0f}",
    ]


def summary_lines(found: dict[str, Any]) -> list[str]:
    """The lines below the tables: load, memory, tokenizer, output."""
    load, memory, output, loop = found["load"], found["memory"], found["output"], found["loop"]
    lines = [
        f"load of a fresh process {load['process']['median']:.2f} s, including opening and building "
        f"{load['engine']['median']:.2f} s ({len(load['process']['samples'])} runs, files in the page cache)"
    ]
    fresh, cached = found["first_token"]["fresh"], found["first_token"]["cached"]
    lines.append(
        f"first token: {fresh['seconds']['median']:.2f} s after the start of a fresh process ({fresh['prompt_tokens']} "
        f"tokens), {cached['seconds']['median'] / MS:.0f} ms after {cached['prompt_tokens']:,} tokens of which "
        f"{cached['cached_tokens']:,} are cached"
    )
    if memory["peak_bytes"] is not None:
        lines.append(
            f"peak memory of a fresh process {memory['peak_bytes'] / MB:,.0f} MB = weights, filled cache and "
            f"{memory['overhead_bytes'] / MB:,.0f} MB"
        )
    if loop is not None:
        lines.append(
            f"per token outside the model: encode {loop['encode'] * 1e6:.0f} us, detokenize "
            f"{loop['detokenize'] * 1e6:.0f} us, greedy {loop['greedy'] * 1e6:.0f} us"
        )
    lines.append(
        f"output: {output['new_tokens']} greedy tokens after {output['prompt_tokens']}, SHA-256 {output['sha256'][:16]}"
    )
    return lines


def span(times: dict[str, Any], digits: int = 1) -> str:
    """The range of a statistic in milliseconds."""
    return f"{times['min'] / MS:.{digits}f}..{times['max'] / MS:.{digits}f}"


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A text table. The first column is left-aligned, the others are right-aligned."""
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in [head, *rows]
    )


def figure_class() -> Any:
    """matplotlib's Figure class. Raises UserError if matplotlib is not installed."""
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise UserError(
            "--plot needs matplotlib, which is not installed. Install it with `pip install edgellama[plot]`"
        ) from error


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw prefill and decode times with their spread. The file name's suffix sets the type. Raises UserError."""
    figure = figure_class()(figsize=(10, 4.5), layout="constrained")
    prompts, steps = figure.subplots(1, 2)
    draw(prompts, found["prefill"], "prompt_tokens", "prompt, tokens", "prefill, ms")
    draw(steps, found["decode"], "depth", "tokens in the cache", "decode step, ms")
    artifact, machine = found["artifact"], found["machine"]
    figure.suptitle(
        f"{artifact['name']} {artifact['target']} {artifact['weights_format']}, "
        f"{found['settings']['threads']} threads of {machine['cpu']}"
    )
    kind = path.suffix.lower().removeprefix(".") or "png"
    try:
        with output_file.replaced(path, is_plot, PLOT) as file:
            figure.savefig(file, dpi=150, format=kind)
    except ValueError as error:
        raise UserError(
            f"{path}: the plot cannot be written ({error}). Give another file, for example bench.png"
        ) from error


def check_plot(path: Path) -> None:
    """Check that `plot` may write a file. Raises UserError if it must not be replaced."""
    output_file.check(path, is_plot, PLOT)


def is_plot(file: BinaryIO) -> bool:
    """Return whether a file is a drawing by matplotlib, which names itself in the metadata."""
    return b"atplotlib" in file.read()


def draw(axes: Any, entries: Sequence[dict[str, Any]], key: str, x_label: str, y_label: str) -> None:
    """Draw one line per batch size: medians, with bars from the fastest repeat to the slowest."""
    for rows in sorted({entry["rows"] for entry in entries}):
        chosen = [entry for entry in entries if entry["rows"] == rows]
        times = [entry["seconds"] for entry in chosen]
        middle = [time["median"] / MS for time in times]
        below = [(time["median"] - time["min"]) / MS for time in times]
        above = [(time["max"] - time["median"]) / MS for time in times]
        at = [entry[key] for entry in chosen]
        axes.errorbar(
            at, middle, yerr=[below, above], marker="o", capsize=3, label=f"{rows} rows" if rows > 1 else "1 row"
        )
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None), xscale="log")
    axes.set_xticks(sorted({entry[key] for entry in entries}), sorted({str(entry[key]) for entry in entries}, key=int))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if len({entry["rows"] for entry in entries}) > 1:
        axes.legend()
