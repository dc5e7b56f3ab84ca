"""The report as JSON and as tables: the figures of every engine, and ratios to the peers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from pool import Figure, Worker
from prepare import Peer

from edgellama.bench import machine
from edgellama.bench.report import columns

SCHEMA_VERSION = 1


def is_bench(peer: Peer, word: str = "") -> bool:
    """Whether this is the user's llama-bench, with a model file whose name contains the word."""
    return peer.engine == "llama-bench" and word in peer.format.upper()


# (kind, tokens, our weights, filter of peers, their name, limit): the ratio of our median to that of the fastest peer
# must not exceed the limit. A line without figures is left out.
LIMITS: list[tuple[str, int, str, Callable[[Peer], bool], str, float]] = [
    ("decode", 128, "int8", lambda p: p.matches("llama.cpp", "Q8_0"), "llama.cpp Q8_0", 0.75),
    ("decode", 128, "int4", lambda p: p.matches("llama.cpp", "Q4_0"), "llama.cpp Q4_0", 0.75),
    ("decode", 4096, "int8", lambda p: p.matches("llama.cpp", "Q8_0"), "llama.cpp Q8_0", 0.55),
    ("prefill", 128, "int8", lambda p: p.engine == "llama.cpp", "llama.cpp, any format", 0.55),
    ("prefill", 512, "int8", lambda p: p.engine == "llama.cpp", "llama.cpp, any format", 0.55),
    ("prefill", 128, "int8", lambda p: p.matches("openvino", "int8"), "OpenVINO int8", 0.90),
    ("prefill", 512, "int8", lambda p: p.matches("openvino", "int8"), "OpenVINO int8", 0.90),
    ("decode", 128, "int8", lambda p: is_bench(p, "Q8_0"), "llama-bench Q8_0", 0.85),
    ("decode", 128, "int4", lambda p: is_bench(p, "Q4"), "llama-bench Q4", 0.85),
    ("decode", 4096, "int8", is_bench, "llama-bench, any file", 0.45),
    ("prefill", 128, "int8", is_bench, "llama-bench, any file", 0.50),
    ("prefill", 512, "int8", is_bench, "llama-bench, any file", 0.50),
]
ACCURACY_PAIRS = [("int8", "Q8_0"), ("int4", "Q4_0")]


def build_report(
    workers: dict[str, Worker],
    figures: list[Figure],
    accuracy: dict[str, dict[str, Any]],
    absent: dict[str, str],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The report as a JSON object.

    Keys: schema_version, machine, settings, engines (version and size), absent (name -> reason), figures (seconds; for
    decode per step), ratios (ours to the fastest peer of each limit), accuracy (KL in nats), accuracy_ratios.
    """
    peers = {name: worker.peer for name, worker in workers.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "machine": machine.describe(),
        "settings": {key: settings[key] for key in ("threads", "rounds", "prompts", "depths", "steps")},
        "engines": {
            name: {"version": worker.version, "file_bytes": sum(f.stat().st_size for f in worker.peer.files)}
            for name, worker in workers.items()
        },
        "absent": absent,
        "figures": [
            {
                "engine": figure.worker,
                "kind": figure.kind,
                "tokens": figure.tokens,
                "median": figure.median,
                "min": min(figure.samples),
                "max": max(figure.samples),
                "samples": figure.samples,
            }
            for figure in figures
        ],
        "ratios": ratios(figures, peers),
        "accuracy": accuracy,
        "accuracy_ratios": accuracy_ratios(accuracy, peers),
    }


def ratios(figures: Sequence[Figure], peers: dict[str, Peer]) -> list[dict[str, Any]]:
    """One entry per line of LIMITS that has figures."""
    found = []
    for kind, tokens, weights, is_rival, against, limit in LIMITS:
        same = [f for f in figures if (f.kind, f.tokens) == (kind, tokens)]
        # exactly this format: a row with a lower instruction set is not what a user gets
        ours = [f for f in same if peers[f.worker].name == f"ours cpu {weights}"]
        others = [f for f in same if is_rival(peers[f.worker])]
        if not ours or not others:
            continue
        best, peer = min(ours, key=lambda f: f.median), min(others, key=lambda f: f.median)
        # ratio within each round: the machine's state affects both sides alike
        rounds = [a / b for a, b in zip(best.samples, peer.samples, strict=True)]
        found.append(
            {
                "kind": kind,
                "tokens": tokens,
                "ours": best.worker,
                "against": against,
                "peer": peer.worker,
                "ratio": best.median / peer.median,
                "ratio_of_rounds": statistics.median(rounds),
                "smallest": min(rounds),
                "largest": max(rounds),
                "limit": limit,
            }
        )
    return found


def accuracy_ratios(accuracy: dict[str, dict[str, Any]], peers: dict[str, Peer]) -> list[dict[str, Any]]:
    """One entry per pair of ACCURACY_PAIRS that has figures."""
    found = []
    for weights, kind in ACCURACY_PAIRS:
        ours = [name for name in accuracy if peers[name].matches("ours", "cpu", weights)]
        theirs = [name for name in accuracy if peers[name].matches("llama.cpp", kind)]
        for name, peer in zip(ours[:1], theirs[:1], strict=False):
            mine, other = accuracy[name], accuracy[peer]
            found.append(
                {
                    "ours": name,
                    "peer": peer,
                    "kl_ratio": mine["kl_mean"] / other["kl_mean"],
                    "bits": [mine["bits_per_weight"], other["bits_per_weight"]],
                }
            )
    return found


def show(report: dict[str, Any]) -> None:
    """Print the report."""
    settings, figures = report["settings"], report["figures"]
    heads = [(kind, n) for kind, key in (("prefill", "prompts"), ("decode", "depths")) for n in settings[key]]
    by_case = {(f["engine"], f["kind"], f["tokens"]): f for f in figures}
    rows = []
    for name in report["engines"]:
        cells = [by_case.get((name, *head)) for head in heads]
        rows.append([name, *("-" if c is None else f"{c['median'] * 1e3:.2f}" for c in cells)])
    print(
        f"{report['machine']['cpu']}, {settings['threads']} threads, medians of {settings['rounds']} rounds in turns; "
        "ms to the first token, ms per decode step"
    )
    print(columns(["engine", *(f"{kind} {n}" for kind, n in heads)], rows))
    for name, reason in report["absent"].items():
        print(f"{name}: absent: {reason}")
    for ratio in report["ratios"]:
        met = "met" if ratio["ratio"] <= ratio["limit"] else "MISSED"
        print(
            f"{ratio['kind']} {ratio['tokens']}: {ratio['ours']} / {ratio['against']} ({ratio['peer']}) = "
            f"{ratio['ratio']:.2f} (rounds: median {ratio['ratio_of_rounds']:.2f}, {ratio['smallest']:.2f} to "
            f"{ratio['largest']:.2f}; limit {ratio['limit']:.2f}: {met})"
        )
    if report["accuracy"]:
        print()
        print(
            columns(
                ["accuracy", "bits/weight", "KL mean, nats", "+-", "99th percentile", "top-1", "perplexity"],
                [
                    [
                        name,
                        f"{a['bits_per_weight']:.3f}",
                        f"{a['kl_mean']:.3e}",
                        f"{a['kl_error']:.0e}",
                        f"{a['kl_p99']:.2e}",
                        f"{a['top1_agreement']:.2%}",
                        f"{a['perplexity']:.3f}",
                    ]
                    for name, a in report["accuracy"].items()
                ],
            )
        )
    for pair in report["accuracy_ratios"]:
        print(
            f"KL {pair['ours']} / {pair['peer']} = {pair['kl_ratio']:.2f} at {pair['bits'][0]:.3f} and "
            f"{pair['bits'][1]:.3f} bits per weight"
        )
