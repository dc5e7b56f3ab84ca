"""What the measurements mean: each question that a host without an NPU leaves open, with yes, no or unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

YES, NO, UNKNOWN = "yes", "no", "unknown"
TOLERANCE = 0.02  # of the logits' range: float16 weights and cache, as exporter.verify allows
Stages = Mapping[str, Mapping[str, Any]]

# MindIR's operators in our graphs -> CANN's that they compile to: any of them will do (older releases have ...D forms).
KERNELS = {
    "Add": ("Add",),
    "Cast": ("Cast",),
    "Div": ("Div", "RealDiv"),
    "Gather": ("GatherV2", "Gather"),
    "MatMul": ("MatMulV2", "MatMul", "BatchMatMulV2"),
    "Mul": ("Mul",),
    "ReduceMean": ("ReduceMean", "ReduceMeanD"),
    "Sigmoid": ("Sigmoid",),
    "Sqrt": ("Sqrt",),
    "Square": ("Square",),
    "Transpose": ("Transpose", "TransposeD"),
}
# What exporter.chips uses besides, where it takes the chip to have it.
FUSED = {"RmsNorm": ("RmsNorm",), "WeightQuantBatchMatmul": ("WeightQuantBatchMatmulV2",)}
USES_FUSED = ("ascend310p", "ascend910b")
# What would be used if it were there.
WELCOME = ("RmsNorm", "SwiGlu", "ApplyRotaryPosEmb", "PromptFlashAttention", "IncreFlashAttention")


@dataclass(frozen=True)
class Answer:
    question: str
    answer: str
    evidence: str


def answers(
    target: str | None, kernels: set[str] | None, conversion: Mapping[str, Any] | None, stages: Stages
) -> list[Answer]:
    """target: of the device's chip, None without one. kernels: the operators that CANN lists for the chip, None where
    its lists were not found. conversion: of the probe: ok, and where it failed cause, operator; None where it did not
    take place. stages: of measure.py, by name."""
    return [
        kernels_exist(target, kernels),
        mindir_loads(conversion),
        in_place(stages),
        gears_switch(stages),
        numbers(stages),
        memory(stages),
    ]


def kernels_exist(target: str | None, found: set[str] | None) -> Answer:
    question = "CANN has a kernel for this chip of every operator in our graphs"
    if found is None:
        return Answer(question, UNKNOWN, "CANN's lists of operators for this chip were not found")
    wanted = KERNELS | (FUSED if target in USES_FUSED else {})
    lacking = [" or ".join(group) for group in wanted.values() if not found.intersection(group)]
    extra = ", ".join(name for name in WELCOME if name in found) or "none"
    if lacking:
        return Answer(question, NO, f"missing: {', '.join(lacking)}; of the fused ones: {extra}")
    return Answer(question, YES, f"{len(found)} operators listed; of the fused ones: {extra}")


def mindir_loads(conversion: Mapping[str, Any] | None) -> Answer:
    question = "MindSpore Lite reads the MindIR that MindSpore 2.10 wrote (lowered to version 1)"
    if conversion is None:
        return Answer(question, UNKNOWN, "the probe was not converted")
    if conversion["ok"]:
        return Answer(question, YES, f"the probe was converted in {conversion['seconds']:.0f} s")
    if conversion.get("operator"):
        return Answer(question, YES, f"read, but conversion failed later: {conversion['cause']}")
    if "MindIR version" in conversion["cause"]:
        return Answer(question, NO, conversion["cause"])
    return Answer(question, UNKNOWN, f"conversion failed: {conversion['cause']}")


def in_place(stages: Stages) -> Answer:
    """Seen twice: the caches read back, and decode, which is right only where attention finds what prefill wrote."""
    question = "An operator's in-place write to an input survives ACL's binding of device tensors"
    cache, decode = stages.get("cache"), stages.get("decode")
    if cache is None:
        return Answer(question, UNKNOWN, _stopped(stages))
    evidence = (
        f"{cache['rows_written']} of {cache['rows_expected']} rows are in the caches after the prefill, "
        f"{cache['rows_spoiled']} beside them"
    )
    if cache["rows_written"] == 0:
        return Answer(question, NO, f"{evidence}: the writes went to a copy")
    if cache["rows_written"] != cache["rows_expected"] or cache["rows_spoiled"]:
        return Answer(question, NO, evidence)
    if decode is None:
        return Answer(question, YES, f"{evidence}; decode: {_stopped(stages)}")
    evidence += f"; decode differs by {decode['relative']:.1e} of the logits' range"
    return Answer(question, YES if _right(decode) else NO, evidence)


def gears_switch(stages: Stages) -> Answer:
    question = "One compiled model serves every bucket as a gear, switched by Model.resize"
    gears = stages.get("gears")
    if gears is None:
        return Answer(question, UNKNOWN, _stopped(stages))
    times = [
        f"{name} tokens: {gear['call_ms']:.2f} ms, switch {gear['switch_ms']:.2f} ms"
        for name, gear in gears.items()
        if name != "stage"
    ]
    return Answer(question, YES if _right(stages["prefill"]) else NO, "; ".join(times))


def numbers(stages: Stages) -> Answer:
    question = f"The logits on the chip are the reference's within {TOLERANCE:.0%} of their range"
    seen = [(name, stages[name]) for name in ("prefill", "decode") if name in stages]
    if not seen:
        return Answer(question, UNKNOWN, _stopped(stages))
    evidence = "; ".join(
        f"{name}: {stage['relative']:.1e}, top-1 agreement {stage['agreement']:.0%}"
        + ("" if stage["finite"] else ", NaN or infinite")
        for name, stage in seen
    )
    return Answer(question, YES if len(seen) == 2 and all(_right(stage) for _, stage in seen) else NO, evidence)


def memory(stages: Stages) -> Answer:
    question = "What loading takes of the device's memory was measured (gears and workspace included)"
    load = stages.get("load")
    if load is None:
        return Answer(question, UNKNOWN, _stopped(stages))
    if load["taken"] <= 0:
        return Answer(question, UNKNOWN, "the device's free memory did not change, or other programs changed it")
    rest = load["taken"] - load["weights"] - load["caches"]
    return Answer(
        question,
        YES,
        f"{load['taken'] / 1e6:.1f} MB: file {load['weights'] / 1e6:.1f}, caches {load['caches'] / 1e6:.1f}, "
        f"the rest {rest / 1e6:.1f}; in {load['seconds']:.1f} s",
    )


def _right(stage: Mapping[str, Any]) -> bool:
    return bool(stage["finite"]) and stage["relative"] <= TOLERANCE


def _stopped(stages: Stages) -> str:
    return f"the probe did not get so far: {stages.get('stopped', {}).get('cause', 'it was not run')}"
