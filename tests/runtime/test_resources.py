"""Processors and memory within the limits of containers and of `ulimit`, and the errors before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgellama.artifact.manifest import Artifact
from edgellama.backend import resources
from edgellama.backend.resources import Limit, available_memory, available_threads, cgroups, cpu_quota
from edgellama.engine import memory
from edgellama.errors import UserError
from support.child import run_child

MEMINFO = "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\nSwapFree: 0 kB\n"


def machine(folder: Path, mounts: Mapping[str, tuple[str, str, str]], own: str, files: Mapping[str, str]) -> Path:
    """Writes /proc and cgroup folders below `folder`; returns the folder that stands for /proc.

    - mounts: name of a mount point -> (root, file system, its options).
    - own: content of /proc/self/cgroup.
    - files: content of the files of cgroups, by their path below `folder`.
    """
    proc = folder / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "self/cgroup").write_text(own)
    lines = ["1 1 0:1 / / rw - ext4 /dev/sda rw"]
    for name, (root, kind, options) in mounts.items():
        lines.append(f"30 20 0:28 {root} {folder / name} rw - {kind} cgroup {options}")
    (proc / "self/mountinfo").write_text("\n".join(lines) + "\n")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return proc


def version_2(folder: Path, own: str, files: Mapping[str, str], root: str = "/") -> Path:
    return machine(folder, {"cg": (root, "cgroup2", "rw")}, f"0::{own}\n", files)


def version_1(folder: Path, own: str, files: Mapping[str, str], root: str = "/") -> Path:
    mounts = {"cpu": (root, "cgroup", "rw,cpu,cpuacct"), "memory": (root, "cgroup", "rw,memory")}
    return machine(folder, mounts, f"5:memory:{own}\n4:cpu,cpuacct:{own}\n0::/\n", files)


@pytest.mark.parametrize(
    ("quota", "processors"),
    [
        ("max 100000", None),
        ("100000 100000", 1),
        ("250000 100000", 2.5),
        ("50000 100000", 0.5),
        ("", None),
    ],
)
def test_cpu_quota_of_version_2(tmp_path: Path, quota: str, processors: float | None) -> None:
    assert cpu_quota(version_2(tmp_path, "/a/b", {"cg/a/b/cpu.max": quota})) == processors


@pytest.mark.parametrize(("quota", "processors"), [("-1", None), ("100000", 1), ("300000", 3), ("", None)])
def test_cpu_quota_of_version_1(tmp_path: Path, quota: str, processors: float | None) -> None:
    files = {"cpu/a/cpu.cfs_quota_us": quota, "cpu/a/cpu.cfs_period_us": "100000\n"}
    assert cpu_quota(version_1(tmp_path, "/a", files)) == processors


def test_the_smallest_quota_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {"cg/a/cpu.max": "100000 100000", "cg/a/b/cpu.max": "400000 100000", "cg/a/b/c/cpu.max": "max 100000"}
    proc = version_2(tmp_path, "/a/b/c", files)
    assert cpu_quota(proc) == 1
    assert available_threads(proc) == 1


@pytest.mark.parametrize("own", ["/docker/x", "/", "/../other", "/elsewhere"])
def test_a_container_that_sees_only_its_part_of_the_hierarchy(tmp_path: Path, own: str) -> None:
    proc = version_2(tmp_path, own, {"cg/cpu.max": "100000 100000"}, root="/docker/x")
    assert [folder for _, folder in cgroups("cpu", proc)] == [tmp_path / "cg"]
    assert cpu_quota(proc) == 1


def test_threads_follow_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = version_2(tmp_path, "/a", {"cg/a/cpu.max": "250000 100000"})
    for affinity, expected in ((1, 1), (2, 2), (8, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, count=affinity: set(range(count)), raising=False)
        assert available_threads(proc) == expected
        assert available_threads(tmp_path / "none") == affinity


def test_memory_of_version_2_counts_the_cache_of_files_as_available(tmp_path: Path) -> None:
    files = {
        "cg/a/memory.max": "1000000000",
        "cg/a/memory.current": "700000000",
        "cg/a/memory.stat": "anon 5\nactive_file 100000000\ninactive_file 200000000\n",
        "cg/a/b/memory.max": "max",
        "cg/a/b/memory.current": "5",
    }
    limit = available_memory(version_2(tmp_path, "/a/b", files))
    assert limit is not None and limit.available == 600_000_000
    assert "1,000 MB" in limit.source and str(tmp_path / "cg/a") in limit.source


def test_memory_of_version_1(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "1",
        "memory/a/memory.limit_in_bytes": "500000000\n",
        "memory/a/memory.usage_in_bytes": "200000000\n",
        "memory/a/memory.stat": "cache 7\ntotal_active_file 10000000\ntotal_inactive_file 0\n",
    }
    limit = available_memory(version_1(tmp_path, "/a", files))
    assert limit is not None and limit.available == 310_000_000


def test_without_cgroups_the_memory_of_the_machine_counts(tmp_path: Path) -> None:
    assert available_memory(machine(tmp_path, {}, "", {})) == Limit(8_192_000_000, "free memory of this machine")
    assert available_memory(tmp_path / "none") is None


@pytest.mark.parametrize("which", ["memory", "address space"])
def test_both_numbers_and_the_remedy_are_in_the_error(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    artifact = Artifact.open(tiny_artifact)
    memory_needed = memory.memory_needed(artifact.manifest, "copy")
    space_needed = memory.address_space_needed(artifact.manifest, 1)
    found = {"memory": memory_needed, "address space": space_needed}
    monkeypatch.setattr(memory, "available_memory", lambda: Limit(found["memory"], "limit A"))
    monkeypatch.setattr(memory, "available_address_space", lambda: Limit(found["address space"], "limit B"))
    memory.check_memory(artifact, 1, "copy")  # exactly what is needed is enough
    needed, found[which] = found[which], 1_000_000
    with pytest.raises(UserError) as caught:
        memory.check_memory(artifact, 1, "copy")
    numbers = (f"{needed / 1e6:,.0f} MB of {which}", "1 MB are available (limit ")
    for text in (*numbers, "Raise the limit", "CONTEXT (now 64)"):
        assert text in str(caught.value)


LIMITED = """
import resource, sys
from edgellama.errors import UserError
from edgellama.model import LlamaForCausalLM
from edgellama.backend import resources
in_use = 1024 * resources._fields(resources.PROC / "self/status")["VmSize"]
limit = in_use + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    model = LlamaForCausalLM.from_pretrained(sys.argv[1], threads=1)
    print("tokens", model.generate([[5, 6]], max_new_tokens=4).size)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("megabytes", [20, 200, 600, 1100, 2000])
def test_a_limit_of_address_space_gives_an_answer_or_a_clear_error(tiny_artifact: Path, megabytes: int) -> None:
    out = run_child("-c", LIMITED, str(tiny_artifact), str(megabytes * 1_000_000)).stdout
    if megabytes == 2000 or "tokens" in out:
        assert out == "tokens 6\n"
    else:
        assert "MB of address space" in out and "available" in out and "Install" not in out


CONFLICT = """
import importlib.util, sys
from edgellama.backend.lite_graph import import_lite
from edgellama.errors import UserError
def lite():
    import_lite()
def mindspore():
    import mindspore
first, second = (lite, mindspore) if sys.argv[1] == "lite" else (mindspore, lite)
first()
for _ in range(2):
    try:
        second()
    except UserError as error:
        print(isinstance(error, ImportError), error)
assert importlib.util.find_spec("mindspore") is not None
assert importlib.util.find_spec("no_such_package") is None
"""


@pytest.mark.parametrize(("first", "loaded"), [("lite", "MindSpore Lite"), ("mindspore", "mindspore")])
def test_mindspore_and_mindspore_lite_in_one_process_are_a_clear_error(first: str, loaded: str) -> None:
    lines = run_child("-c", CONFLICT, first).stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("True MindSpore and MindSpore Lite have libraries of the same names")
        assert f"{loaded} is loaded already" in line and "process without mindspore" in line


def test_this_machine_tells_its_limits() -> None:
    limit = resources.available_memory()
    assert limit is None or limit.available > 0
    assert resources.available_threads() >= 1
