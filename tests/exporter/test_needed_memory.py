"""An export that lacks memory stops before its work, with both numbers and a remedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgellama.artifact.manifest import Artifact
from edgellama.backend.resources import Limit
from edgellama.engine.memory import memory_needed
from edgellama.engine.weights_memory import MAP
from edgellama.errors import UserError
from edgellama.exporter import needed_memory
from support.child import run_child
from support.exported import tiny_checkpoint

LIMITED = """
import resource, sys
from edgellama.__main__ import main
resource.setrlimit(resource.RLIMIT_AS, (1_000_000_000, 1_000_000_000))
sys.exit(main(["export", sys.argv[1], "--out", sys.argv[2]]))
"""


def test_an_export_with_little_address_space_is_refused_before_its_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_child("-c", LIMITED, str(tiny_checkpoint()), str(out), status=2)
    assert "takes at least 1,650 MB of address space; " in done.stderr and "1,000 MB (`ulimit -v`)" in done.stderr
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_the_memory_of_export_and_proof_is_compared(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Artifact.open(tiny_artifact).manifest
    available = memory_needed(manifest, MAP)
    monkeypatch.setattr(needed_memory, "available_memory", lambda: Limit(available, "limit A"))
    needed_memory.check_proof(manifest)  # exactly what is needed is enough
    available -= 1
    with pytest.raises(UserError, match=r"takes at least \d+ MB of memory; \d+ MB are available \(limit A\).*VERIFY=0"):
        needed_memory.check_proof(manifest)
    needed_memory.check_proof(dataclasses.replace(manifest, opset="ascend"))
    available = needed_memory.PRIVATE
    needed_memory.check_export("tiny")
    available -= 1
    with pytest.raises(UserError, match=r"exporting tiny takes at least 400 MB of memory; 400 MB are available"):
        needed_memory.check_export("tiny")
