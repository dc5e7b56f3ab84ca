"""The instructions that the CPU must have. Without this check, a CPU that lacks them ends the process with SIGILL."""

from __future__ import annotations

from pathlib import Path

from .errors import UserError

CPUINFO = Path("/proc/cpuinfo")
# numpy's wheels need x86-64-v2 from this release on (its "baseline" of CPU features). Linux's names of the flags.
NUMPY = (2, 4)
NEEDED = ("cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2")


def check_cpu() -> None:
    """Raise UserError if this CPU lacks instructions that numpy uses as soon as it is imported. numpy is not imported.

    Other CPUs than x86-64, and systems without /proc/cpuinfo, pass.
    """
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    first = dict(_fields(text.partition("\n\n")[0]))
    flags = first.get("flags", "").split()
    missing = [flag for flag in NEEDED if flag not in flags]
    if "lm" not in flags or not missing:  # lm: 64-bit x86
        return
    import importlib.metadata  # imported late: on most CPUs it is not needed, and takes milliseconds

    version = importlib.metadata.version("numpy")
    if tuple(int(part) for part in version.split(".")[:2]) < NUMPY:
        return
    raise UserError(
        f"this CPU ({first.get('model name', 'unknown')}) lacks {', '.join(missing)}; numpy {version} needs x86-64-v2 "
        f"({', '.join(NEEDED)}). In a virtual machine, choose a CPU type with these flags (QEMU: -cpu host). On an "
        "older CPU: pip install 'numpy<2.4'"
    )


def _fields(block: str) -> list[tuple[str, str]]:
    pairs = (line.partition(":") for line in block.splitlines())
    return [(name.strip(), value.strip()) for name, _, value in pairs]
