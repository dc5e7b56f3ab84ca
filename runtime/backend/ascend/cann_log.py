"""Finds in the logs of CANN and MindSpore Lite what went wrong, and says it in one sentence with a remedy.

CANN reports "EZ3003: [PID: 1] 2025-02-25-14:07:19 No supported Ops kernel ... [name], optype [type].": an error code,
then the text. Some releases leave out the parts in brackets. The lines of MindSpore Lite have no codes; they are
recognised by the texts in its sources, release 2.7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgellama.kernels.ascend.chips import CUSTOM_OPERATORS

CODE = re.compile(r"\b(E[A-Z]?\d{4,5}): (?:\[PID: \d+\] )?(?:\d{4}-\d\d-\d\d-[\d:.]+ )?(.+)")
OPERATOR = (
    re.compile(r"\[(?P<name>[^\[\],]+)\], optype \[(?P<type>[^\[\]]+)\]"),  # EZ3003, EZ9010
    re.compile(r"Op \[(?P<name>[^\[\],]+), ?optype \[(?P<type>[^\[\]]+)\]"),  # E19010, EZ0501
    re.compile(r"Optype \[(?P<type>[^\[\]]+)\] of Ops kernel"),  # EZ3002
    re.compile(r"OP TYPE: (?P<type>[\w:]+)"),  # MindSpore Lite's list of operators that it cannot parse
)
OURS = re.compile(r"\[ERROR\] edgellama: (.+)")  # the operator package's own refusal

# (pattern, cause, remedy); \1 in the cause stands for the group of the pattern. The first match counts.
CAUSES: tuple[tuple[str, str, str], ...] = (
    (r"Acl open device (\d+) failed", r"device \1 cannot be opened", "Check its health with `npu-smi info`"),
    (
        r"(?:lib(?:ascendcl|acl\w*|graph|ge_\w+)\.so[\w.]*): cannot open shared object",
        "CANN's libraries are not found",
        "Run `source /usr/local/Ascend/ascend-toolkit/set_env.sh`",
    ),
    (
        r"Malloc (?:device|host) buffer failed ?, buffer size (\d+)",
        r"no memory for \1 bytes on the device",
        "Free some (`npu-smi info` lists processes), or export with a smaller CONTEXT or BATCH",
    ),
    (
        r"(?:aclrtMalloc\w* failed|malloc device data failed|207001|EL0004)",
        "the device has no memory left",
        "Free some (`npu-smi info` lists processes), or export with a smaller CONTEXT or BATCH",
    ),
    (
        r"Current batch size (\d+) is invalid",
        r"the gear of \1 tokens was not converted",
        "Convert the exported artifact again: `make convert ARTIFACT=...`",
    ),
    (
        r"Not support dynamic input",
        "the model was converted without gears",
        "Convert the exported artifact again: `make convert ARTIFACT=...`",
    ),
    (
        r"(?:total w?input shape of 128|all inputs dims must be less than 128)",
        "the model's inputs have more dimensions than MindSpore Lite accepts with gears of the kind ge.dynamicDims",
        "Export again with this release, whose gears are of another kind",
    ),
    (
        r"Only support Custom\w*, but got (\w+)",
        r"the graph is not converted (it still holds \1)",
        "Convert it on a host with CANN: `make convert ARTIFACT=...`",
    ),
    (
        r"aclmdlLoadFromMem\w* failed, ret = (\d+)",
        r"CANN cannot load the compiled model (status \1): another CANN release compiled it, or it is for another chip",
        "Convert the exported artifact with this host's CANN: `make convert ARTIFACT=...`",
    ),
    (
        r"Byte size of input (\d+) != the size expected",
        r"input \1 has another size than the compiled model's",
        "Convert the exported artifact again: `make convert ARTIFACT=...`",
    ),
    (
        r"Get ascend path failed",
        "MindSpore Lite looks for CANN in a folder called latest, but the CANN that is loaded is in another folder",
        "Source the set_env.sh beside the folder latest of the CANN installation",
    ),
    (
        r"recover ir outputs failed",
        "the definition of a custom operator is missing, or is another than the graph was written for",
        "Build and install the operator package of this release: `make kernels`",
    ),
    (
        r"maximum mind ir version",
        "this MindSpore Lite cannot read the graph's MindIR version",
        "Install a later MindSpore Lite, or export again with this release",
    ),
)


@dataclass(frozen=True)
class Finding:
    """What a log says went wrong.

    Attributes:
        cause: what failed, with the operator and CANN's error code if the log has them
        remedy: what to do about it
        operator: type of the operator that failed, if one did
        code: CANN's error code, if the log has one
    """

    cause: str
    remedy: str
    operator: str | None = None
    code: str | None = None

    def __str__(self) -> str:
        return f"{self.cause}. {self.remedy}"


def explain(log: str) -> Finding | None:
    """Return the first known problem in the log, or None."""
    if ours := OURS.search(log):
        return _refusal(ours[1])
    code = CODE.search(log)
    for pattern in OPERATOR:
        if found := pattern.search(log):
            return _operator(found, code)
    for text, cause, remedy in CAUSES:
        if match := re.search(text, log):
            return Finding(match.expand(cause), remedy, code=code[1] if code else None)
    if code:
        return Finding(
            f"{code[1]}: {code[2].strip().rstrip('.')}", f"CANN's documentation explains {code[1]}", code=code[1]
        )
    return None


def _refusal(said: str) -> Finding:
    """Explain the refusal of an operator of this project: an export of the same release never causes one."""
    name, _, problem = said.partition(": ")
    if name not in CUSTOM_OPERATORS:
        name, problem = "", said
    return Finding(
        f"{f'operator {name}' if name else 'an operator of this project'} refused: {problem}",
        "The artifact and the installed operator package are of different releases: build and install the package with "
        "`make kernels`, then export and convert again",
        name or None,
    )


def _operator(found: re.Match[str], code: re.Match[str] | None) -> Finding:
    """Explain an operator that CANN or MindSpore Lite does not support."""
    kind, name = found["type"], found.groupdict().get("name")
    where = f"operator {kind}" + (f" (node {name})" if name else "")
    number = f"{code[1]}: " if code else ""
    if kind in CUSTOM_OPERATORS:
        remedy = (
            "It belongs to this project: build and install its package with `make kernels`, and source its "
            "set_env.bash if it is installed outside CANN"
        )
    else:
        remedy = "This CANN has no such kernel for the chip: install the matching CANN kernels package, or a later CANN"
    reason = re.search(r"Reason: (.{1,300}?)(?:\n|\.\[|$)", found.string[found.start() :])
    said = f", because: {reason[1]}" if reason else ""
    return Finding(f"{number}{where} is not supported{said}", remedy, kind, code[1] if code else None)
