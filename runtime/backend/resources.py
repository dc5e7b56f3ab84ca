"""How many processors and how much memory this process may use, with the limits of containers (cgroups v1 and v2).

A cgroup is a folder below the place where its controller is mounted; the limits of all its parents apply too
(https://docs.kernel.org/admin-guide/cgroup-v2.html, cgroup-v1/memory.html, scheduler/sched-bwc.html).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
M_ARENA_MAX = -8  # malloc.h
UNLIMITED = 1 << 60  # version 1 writes "no limit" as the largest multiple of a page


@dataclass(frozen=True)
class Limit:
    """Bytes that this process can still get.

    Attributes:
        available: bytes.
        source: what limits them, for a message.
    """

    available: int
    source: str


def available_threads(proc: Path = PROC) -> int:
    """Return how many processors this process may use: its affinity, and the CPU quota of its cgroups.

    A quota of 2.5 processors gives 2: the threads of a pass wait for each other in loops, which would use up the quota.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota(proc)
    return processors if quota is None else max(1, min(processors, int(quota)))


def cpu_quota(proc: Path = PROC) -> float | None:
    """Return the smallest CPU quota of the cgroups of this process, in processors; None without one."""
    quotas = []
    for version, folder in cgroups("cpu", proc):
        if version == 2:
            words = _text(folder / "cpu.max").split()
        else:
            words = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))  # "max" and -1: no quota
    return min((quota for quota in quotas if quota > 0), default=None)


def available_memory(proc: Path = PROC) -> Limit | None:
    """Return the memory that this process can get without the pages of files, which the system can drop.

    None if the system does not tell (no Linux).
    """
    limits = []
    system = _fields(proc / "meminfo")
    if "MemAvailable" in system:
        free = 1024 * (system["MemAvailable"] + system.get("SwapFree", 0))
        limits.append(Limit(free, "free memory of this machine"))
    for version, folder in cgroups("memory", proc):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (_text(folder / name).strip() for name in names)
        if not (limit.isdigit() and used.isdigit()) or int(limit) > UNLIMITED:
            continue
        prefix = "" if version == 2 else "total_"
        statistics = _fields(folder / "memory.stat")
        cached = sum(statistics.get(f"{prefix}{which}_file", 0) for which in ("active", "inactive"))
        available = max(0, int(limit) - max(0, int(used) - cached))
        limits.append(Limit(available, f"memory limit of {_megabytes(int(limit))} of the container ({folder})"))
    return min(limits, key=lambda limit: limit.available, default=None)


def available_address_space(proc: Path = PROC) -> Limit | None:
    """Return the address space that this process can still map; None without a limit (`ulimit -v`)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    status = _fields(proc / "self/status")
    if limit == resource.RLIM_INFINITY or "VmSize" not in status:
        return None
    return Limit(max(0, limit - 1024 * status["VmSize"]), f"address space limit of {_megabytes(limit)} (`ulimit -v`)")


@contextmanager
def address_space_kept(size: int) -> Iterator[None]:
    """During the block, hide `size` bytes of address space from allocations; nothing for a size below 1."""
    if size < 1:
        yield
        return
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ):
        yield


def share_one_heap() -> None:
    """Let all threads share the C library's main heap, where they would reserve 64 MB each.

    For a process with little address space: threads that come first would take what the later ones need.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def cgroups(controller: str, proc: Path = PROC) -> Iterator[tuple[int, Path]]:
    """Yield the version and the folder of each cgroup of this process that has the controller, and of its parents."""
    paths = {}  # controller, or "" for version 2 -> path of the cgroup in its hierarchy
    for line in _text(proc / "self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        paths.update({name: path for name in names.split(",")})
    for line in _text(proc / "self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        name = "" if version == 2 else controller
        if name not in paths or (version == 1 and controller not in kind[2].split(",")):
            continue
        root, mounted = (Path(_unescaped(field)) for field in fields[3:5])
        own = Path(paths[name])
        # A container may see a part of the hierarchy only: `root` of it is mounted, and its own cgroup may be outside.
        below = own.relative_to(root) if own.is_relative_to(root) else Path()
        if ".." in below.parts:
            below = Path()
        folder = mounted / below
        yield version, folder
        for parent in folder.parents:
            if not parent.is_relative_to(mounted):
                break
            yield version, parent


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file with lines such as `MemAvailable: 1000 kB` or `total_inactive_file 1000`."""
    found = {}
    for line in _text(path).splitlines():
        words = line.replace(":", " ").split()
        if len(words) > 1 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found


def _text(path: Path) -> str:
    if not sys.platform.startswith("linux"):
        return ""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # another version of cgroups, or hidden in this container
        return ""


def _unescaped(field: str) -> str:
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        field = field.replace(code, character)
    return field


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
