"""The command `bench`: options, the order of the measurements, and where the report goes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import output_file
from ..artifact.manifest import Artifact, Manifest
from ..artifact.sizes import bytes_per_step, cache_bytes, cache_bytes_per_token, step_weight_bytes, weights_bytes
from ..backend.cpu_kernels import limit_isa
from ..backend.resources import available_threads
from ..cli.options import add_artifact, add_check, add_threads
from ..cli.options import check as check_of
from ..engine.device_option import add_device
from ..engine.engine import Engine
from ..engine.weights_memory import add_weights_memory
from ..progress import progress
from ..text.tokenizer import Tokenizer
from . import fresh, machine, report
from .lookup import LookupText, lookup_texts
from .overhead import Overhead
from .workload import TEXT, CachedPrompt, Settings, Workload, loop_times, statistic

SCHEMA_VERSION = 1
CACHE_NAMES = {"int16": "float16"}  # MindSpore Lite would convert float16 inputs, so caches are declared as int16
SLOW_LOAD_SECONDS = 5.0  # a slower load is not repeated
FRESH_PROMPT = 32  # tokens of the prompt of a fresh process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bench`."""
    defaults = Settings(threads=None)
    parser.description = (
        "Measure prefill, decode, load time and memory, and the read bandwidth of this machine. "
        "`pydoc edgellama.bench` describes the JSON."
    )
    add_artifact(parser)
    add_threads(parser)
    add_device(parser)
    add_check(parser)
    add_weights_memory(parser)
    parser.add_argument("--prompt-lengths", type=number_list, default=defaults.prompt_lengths, metavar="N,N,...")
    parser.add_argument("--depths", type=number_list, default=defaults.depths, metavar="N,N,...", help="context depths")
    parser.add_argument("--batches", type=number_list, metavar="N,N,...", help="rows; default: 1, 2, 4, ... and all")
    parser.add_argument("--repeats", type=int, default=defaults.repeats, metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=defaults.steps, metavar="N", help="decode steps per sample")
    parser.add_argument(
        "--lookup", nargs="+", default=(), metavar="FILE", help="measure prompt lookup on the answers to these texts"
    )
    parser.add_argument(
        "--isa", metavar="NAME", help="use no later instruction set than this: portable, avx2, avxvnni, avx512, neon"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - prints it instead of the table")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw the times (needs the extra edgellama[plot])"
    )
    parser.set_defaults(run=run)


def number_list(text: str) -> tuple[int, ...]:
    """Parse comma-separated whole numbers. Raises ArgumentTypeError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 32,128,512") from error


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises UserError for settings that do not fit, and for files that cannot be written."""
    names = ("threads", "prompt_lengths", "depths", "batches", "repeats", "steps", "weights_memory", "isa")
    settings = Settings(**{name: getattr(options, name) for name in names})
    if options.plot:
        report.figure_class()  # report a missing library before minutes of measuring
        report.check_plot(options.plot)
    if options.json and options.json != "-":
        output_file.check_report(Path(options.json))
    found = bench(Path(options.artifact), settings, check_of(options), options.device_id, options.lookup)
    if options.json == "-":
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        print(report.table(found))
        if options.json:
            output_file.write_report(Path(options.json), found)
    if options.plot:
        report.plot(found, options.plot)


def bench(
    path: Path,
    settings: Settings,
    check: str = "once",
    device_id: int | None = None,
    lookup: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure an artifact. Returns the object that --json writes (see runtime.bench).

    Args:
        check: as in Artifact.open
        device_id: as in Engine
        lookup: files with texts, to measure prompt lookup
    """
    artifact = Artifact.open(path, check=check, show_progress=True)
    manifest = artifact.manifest
    for note in settings.clipped(manifest):
        print(f"note: {note}. For more, export with a larger CONTEXT", file=sys.stderr)
    settings = settings.fitted(manifest)
    threads = settings.threads or available_threads()
    isa = limit_isa(settings.isa)
    with progress(f"Loading {manifest.name} in fresh processes"):
        load, memory = loads(artifact, threads, settings, device_id)
        fresh_first = first_tokens(artifact, threads, settings, device_id, check)
    with progress(f"Loading {manifest.name}"):
        engine = Engine(artifact, threads, device_id=device_id, weights_memory=settings.weights_memory)
    workload = Workload(engine)
    output = workload.output()
    tokenizer = Tokenizer.from_folder(path) if artifact.file("tokenizer.json").is_file() else None
    overhead = Overhead(workload, prompt(workload, tokenizer, settings.depths[0]), settings.steps)
    cached = CachedPrompt(workload)
    texts = lookup_texts(engine, tokenizer, lookup)
    prefill, decode, bandwidth = rounds(workload, settings, overhead, cached, texts)
    return {
        "schema_version": SCHEMA_VERSION,
        "artifact": artifact_entry(artifact),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "settings": {
            "threads": engine.threads,
            "weights_memory": settings.weights_memory,
            "isa": isa,
            "repeats": settings.repeats,
            "steps": settings.steps,
            "prompt_lengths": list(settings.prompt_lengths),
            "depths": list(settings.depths),
            "batches": list(settings.batches or ()),
        },
        "bandwidth": bandwidth,
        "prefill": prefill,
        "decode": decode,
        "first_token": {"fresh": fresh_first, "cached": cached.entry()},
        "prompt_lookup": [text.entry() for text in texts],
        "step_overhead": overhead.entries(),
        "loop": loop_times(tokenizer, engine.vocab_size) if tokenizer else None,
        "load": load,
        "memory": memory,
        "output": output,
    }


def prompt(workload: Workload, tokenizer: Tokenizer | None, length: int) -> np.ndarray:
    """Token ids [length] of a text, so that the scores are as peaked as usual; random ids without a tokenizer."""
    if tokenizer is None:
        return workload.tokens[0, :length]
    return np.resize(tokenizer.encode(TEXT), length)


def rounds(
    workload: Workload, settings: Settings, overhead: Overhead, cached: CachedPrompt, texts: Sequence[LookupText] = ()
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Measure. Returns the prefill, decode and bandwidth objects of the report.

    `overhead`, `cached` and `texts` keep their own samples.

    Each round measures everything once, so that a slow moment of the machine does not affect one figure alone. The
    first round warms up and is dropped.
    """
    manifest, steps = workload.engine.manifest, settings.steps
    batches = settings.batches or (1,)
    prompts = cases(settings.prompt_lengths, batches)
    depths = cases(settings.depths, batches)
    reading = machine.ReadBandwidth(
        bytes_per_step(manifest, settings.depths[0], batches[0], steps), workload.engine.threads
    )
    with progress(f"Filling the cache to {settings.depths[-1]:,} tokens"):
        workload.prefill(settings.depths[-1], max(batches))
    prefill: dict[tuple[int, int], list[float]] = {case: [] for case in prompts}
    decode: dict[tuple[int, int], list[tuple[float, float]]] = {case: [] for case in depths}
    rates: list[float] = []
    for number in range(settings.repeats + 1):
        with progress(f"Measuring, round {number} of {settings.repeats}" if number else "Warming up"):
            rates.append(reading.measure())
            for case in prompts:
                prefill[case].append(workload.prefill(*case))
            for case in depths:
                decode[case].append(workload.decode(*case, steps))
            overhead.measure()
            cached.measure()
        if texts:
            for text in texts:
                text.measure()
            workload.prefill(settings.depths[-1], max(batches))  # the answers are in row 0 now
    rate = statistic(rates[1:])
    return (
        [prefill_entry(*case, samples[1:]) for case, samples in prefill.items()],
        [
            decode_entry(*case, samples[1:], bytes_per_step(manifest, *case, steps), rate["max"])
            for case, samples in decode.items()
        ],
        {"method": reading.method, "buffer_bytes": reading.buffer_bytes, "rate": rate},
    )


def cases(lengths: Sequence[int], batches: Sequence[int]) -> list[tuple[int, int]]:
    """(length, rows) to measure: every length with the smallest batch, the shortest length with every other batch."""
    return [(length, batches[0]) for length in lengths] + [(lengths[0], rows) for rows in batches[1:]]


def prefill_entry(tokens: int, rows: int, samples: Sequence[float]) -> dict[str, Any]:
    """One entry of the report's `prefill`. samples: seconds."""
    seconds = statistic(samples)
    return {
        "prompt_tokens": tokens,
        "rows": rows,
        "seconds": seconds,
        "tokens_per_second": tokens * rows / seconds["median"],
    }


def decode_entry(
    depth: int, rows: int, samples: Sequence[tuple[float, float]], size: int, bandwidth: float
) -> dict[str, Any]:
    """One entry of the report's `decode`.

    Args:
        depth: tokens in the cache before the steps
        rows: rows that decode together
        samples: (seconds per step, seconds of that in the graph)
        size: bytes that a step reads
        bandwidth: bytes per second
    """
    seconds = statistic([step for step, _ in samples])
    rate = size / seconds["median"]
    return {
        "depth": depth,
        "rows": rows,
        "seconds": seconds,
        "model_seconds": statistic([graph for _, graph in samples]),
        "tokens_per_second": rows / seconds["median"],
        "bytes_per_step": size,
        "rate": rate,
        "bandwidth_share": rate / bandwidth,
    }


def loads(
    artifact: Artifact, threads: int, settings: Settings, device_id: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The load and memory objects of the report, from fresh processes.

    The first process fills the KV cache and also brings the files into the page cache. Its load time therefore counts
    only if loading is too slow to repeat.
    """
    manifest = artifact.manifest
    place, isa = settings.weights_memory, settings.isa
    full = fresh.measure(artifact.path, threads, place, settings.depths[-1], device_id, isa)
    slow = (full["engine_seconds"] or 0) > SLOW_LOAD_SECONDS
    repeats = 0 if slow else settings.repeats
    runs = [fresh.measure(artifact.path, threads, place, 0, device_id, isa) for _ in range(repeats)] or [full]
    load = {
        "process": statistic([float(run["process_seconds"] or 0) for run in runs]),
        "engine": statistic([float(run["engine_seconds"] or 0) for run in runs]),
    }
    peak = full["peak_bytes"]
    filled = manifest.batch * (settings.depths[-1] + 1) * cache_bytes_per_token(manifest)
    memory = {
        "peak_bytes": peak,
        "after_load_bytes": full["after_load_bytes"],
        "filled_cache_bytes": filled,
        "overhead_bytes": None if peak is None else int(peak) - weights_bytes(manifest) - filled,
    }
    return load, memory


def first_tokens(
    artifact: Artifact, threads: int, settings: Settings, device_id: int | None, check: str
) -> dict[str, Any]:
    """The report's first_token.fresh: from the start of a process to the first token of a short prompt."""
    tokens = min(FRESH_PROMPT, artifact.manifest.context - 1)
    place, isa = settings.weights_memory, settings.isa
    seconds: list[float] = []
    while len(seconds) < settings.repeats and max(seconds, default=0.0) < SLOW_LOAD_SECONDS:
        seconds.append(fresh.measure_first_token(artifact.path, threads, place, tokens, device_id, isa, check))
    return {"prompt_tokens": tokens, "seconds": statistic(seconds)}


def artifact_entry(artifact: Artifact) -> dict[str, Any]:
    """The `artifact` object of the report."""
    manifest: Manifest = artifact.manifest
    same = ("name", "target", "opset", "weights_format", "batch", "context", "kernel_abi")
    return {
        **{name: getattr(manifest, name) for name in same},
        "digest": manifest.to_dict()["digest"],
        "cache_dtype": CACHE_NAMES.get(manifest.cache.dtype, manifest.cache.dtype),
        "buckets": list(manifest.buckets),
        "weights_bytes": weights_bytes(manifest),
        "step_weights_bytes": step_weight_bytes(manifest),
        "cache_bytes": cache_bytes(manifest),
    }
