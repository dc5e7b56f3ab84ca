"""Turns measurements into answers: yes, no or unknown to each question that a host without an NPU leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellama.kernels.ascend.chips import FORMER_OPERATORS, OPERATORS, Chip

YES, NO, UNKNOWN = "yes", "no", "unknown"
TOLERANCE = 0.02  # share of the logits' range: what exporter.proof.verify allows for float16 weights and cache
Stages = Mapping[str, Mapping[str, Any]]

# CANN's fused operators that would be worth using if they exist; the evidence lists those that do.
WELCOME = ("RmsNorm", "SwiGlu", "ApplyRotaryPosEmb", "PromptFlashAttention", "IncreFlashAttention")


@dataclass(frozen=True)
class ProbeResult:
    """The answer to one question. answer: YES, NO or UNKNOWN; evidence: the measurements behind it, in words."""

    question: str
    answer: str
    evidence: str


def probe_results(
    chip: Chip | None, kernels: set[str] | None, conversion: Mapping[str, Any] | None, stages: Stages
) -> list[ProbeResult]:
    """Return every question with its answer and evidence.

    Args:
        chip: the device's chip; None without a device, or if no target is for it
        kernels: the operators that CANN lists for the chip; None if its lists were not found
        conversion: of the probe: ok and seconds, or if it failed ok, cause and operator; None if it was not tried
        stages: what measure.py printed, by the name of the stage
    """
    return [
        kernels_exist(chip, kernels),
        mindir_loads(conversion),
        in_place(stages),
        gears_switch(stages),
        numbers(stages),
        memory(stages),
    ]


def kernels_exist(chip: Chip | None, found: set[str] | None) -> ProbeResult:
    question = "CANN has a kernel for this chip for every operator in our graphs"
    if chip is None or found is None:
        return ProbeResult(question, UNKNOWN, "CANN's lists of operators for this chip were not found")
    wanted = [OPERATORS[name] for name in chip.operators if OPERATORS[name] and name not in FORMER_OPERATORS]
    lacking = [" or ".join(group) for group in wanted if not found.intersection(group)]
    extra = ", ".join(name for name in WELCOME if name in found) or "none"
    if lacking:
        return ProbeResult(question, NO, f"missing: {', '.join(lacking)}; of the fused ones: {extra}")
    return ProbeResult(question, YES, f"{len(found)} operators listed; of the fused ones: {extra}")


def mindir_loads(conversion: Mapping[str, Any] | None) -> ProbeResult:
    question = "MindSpore Lite reads the MindIR that MindSpore 2.10 wrote (lowered to version 1)"
    if conversion is None:
        return ProbeResult(question, UNKNOWN, "the probe was not converted")
    if conversion["ok"]:
        return ProbeResult(question, YES, f"the probe was converted in {conversion['seconds']:.0f} s")
    if conversion.get("operator"):
        return ProbeResult(question, YES, f"read, but conversion failed later: {conversion['cause']}")
    if "MindIR version" in conversion["cause"]:
        return ProbeResult(question, NO, conversion["cause"])
    return ProbeResult(question, UNKNOWN, f"conversion failed: {conversion['cause']}")


def in_place(stages: Stages) -> ProbeResult:
    """Two measurements show it: the caches that were read back, and decode, which is right only if attention finds
    what prefill wrote."""
    question = "An operator's in-place write to an input survives ACL's binding of device tensors"
    cache, decode = stages.get("cache"), stages.get("decode")
    if cache is None:
        return ProbeResult(question, UNKNOWN, _stopped(stages))
    evidence = (
        f"{cache['rows_written']} of {cache['rows_expected']} rows are in the caches after the prefill, "
        f"{cache['rows_spoiled']} were written outside them"
    )
    if cache["rows_written"] == 0:
        return ProbeResult(question, NO, f"{evidence}: the writes went to a copy")
    if cache["rows_written"] != cache["rows_expected"] or cache["rows_spoiled"]:
        return ProbeResult(question, NO, evidence)
    if decode is None:
        return ProbeResult(question, YES, f"{evidence}; decode: {_stopped(stages)}")
    evidence += f"; decode differs by {decode['relative']:.1e} of the logits' range"
    return ProbeResult(question, YES if _right(decode) else NO, evidence)


def gears_switch(stages: Stages) -> ProbeResult:
    question = "One compiled model serves every bucket as a gear, switched by Model.resize"
    gears = stages.get("gears")
    if gears is None:
        return ProbeResult(question, UNKNOWN, _stopped(stages))
    times = [
        f"{name} tokens: {gear['call_ms']:.2f} ms, switch {gear['switch_ms']:.2f} ms"
        for name, gear in gears.items()
        if name != "stage"
    ]
    return ProbeResult(question, YES if _right(stages["prefill"]) else NO, "; ".join(times))


def numbers(stages: Stages) -> ProbeResult:
    question = f"The logits on the chip differ from the reference by less than {TOLERANCE:.0%} of their range"
    seen = [(name, stages[name]) for name in ("prefill", "decode") if name in stages]
    if not seen:
        return ProbeResult(question, UNKNOWN, _stopped(stages))
    evidence = "; ".join(
        f"{name}: {stage['relative']:.1e}, top-1 agreement {stage['agreement']:.0%}"
        + ("" if stage["finite"] else ", NaN or infinite")
        for name, stage in seen
    )
    return ProbeResult(question, YES if len(seen) == 2 and all(_right(stage) for _, stage in seen) else NO, evidence)


def memory(stages: Stages) -> ProbeResult:
    question = "The device memory that loading takes was measured (gears and workspace included)"
    load = stages.get("load")
    if load is None:
        return ProbeResult(question, UNKNOWN, _stopped(stages))
    if load["taken"] <= 0:
        return ProbeResult(question, UNKNOWN, "the device's free memory did not change, or other programs changed it")
    rest = load["taken"] - load["weights"] - load["caches"]
    return ProbeResult(
        question,
        YES,
        f"{load['taken'] / 1e6:.1f} MB: file {load['weights'] / 1e6:.1f}, caches {load['caches'] / 1e6:.1f}, "
        f"the rest {rest / 1e6:.1f}; in {load['seconds']:.1f} s",
    )


def _right(stage: Mapping[str, Any]) -> bool:
    return bool(stage["finite"]) and stage["relative"] <= TOLERANCE


def _stopped(stages: Stages) -> str:
    return f"the probe stopped before this: {stages.get('stopped', {}).get('cause', 'it was not run')}"
