"""weights_memory: every command and function that loads an artifact has the same choice, and hands it to the engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.__main__ import COMMANDS, main, parser
from edgellama.bench import fresh
from edgellama.engine.weights_memory import COPY, MAP, WEIGHTS_MEMORY
from edgellama.errors import UserError
from edgellama.exporter.proof import evaluate, verify
from edgellama.pipelines import pipeline
from edgellama.serve import bench as serve_bench
from support.child import run_python
from support.exported import export_tiny, tiny_checkpoint

LOADING = {"generate", "chat", "serve", "bench", "verify", "evaluate"}
NOT_LOADING = {"check", "inspect", "convert"}  # they take an artifact, and read or compile its files

# Prints whether the process that loaded the artifact maps its weights file.
MAPPED = """
import json, sys
from pathlib import Path
from edgellama import pipeline
write = pipeline(model=sys.argv[1], tokenizer=object(), threads=1, weights_memory=sys.argv[2])
print(json.dumps("weights.safetensors" in Path("/proc/self/maps").read_text()))
"""


def option(command: str) -> argparse.Action | None:
    """Return the declaration of --weights-memory that a command has."""
    commands: Any = next(a for a in parser([command])._actions if isinstance(a, argparse._SubParsersAction))
    return next((a for a in commands.choices[command]._actions if a.dest == "weights_memory"), None)


def test_every_command_that_loads_an_artifact_declares_the_option_in_the_same_words() -> None:
    found = {name: option(name) for name in LOADING}
    assert all(found.values())
    assert len({(tuple(x.choices or ()), x.default, x.help) for x in found.values() if x}) == 1
    taking = set()
    for name in COMMANDS:
        commands: Any = next(a for a in parser([name])._actions if isinstance(a, argparse._SubParsersAction))
        if any(action.dest == "artifact" for action in commands.choices[name]._actions):
            taking.add(name)
    assert taking == LOADING | NOT_LOADING


@pytest.mark.parametrize("memory", WEIGHTS_MEMORY)
def test_a_pipeline_maps_the_weights_if_told_to(memory: str) -> None:
    assert run_python(MAPPED, str(export_tiny("cpu")), memory) == (memory == MAP)


def test_each_way_to_load_hands_the_choice_to_the_engine(tmp_path: Path) -> None:
    folder = export_tiny("cpu")
    refused = pytest.raises(UserError, match="weights_memory is 'disk'; needed: one of copy, map")
    with refused:
        pipeline(model=folder, weights_memory="disk")
    with refused:
        fresh.measure(folder, 1, "disk", 0)
    with refused:
        evaluate.run_windows(folder, np.ones((1, 8), np.int32), 3, tmp_path, "disk")


@pytest.mark.parametrize("given", [[], ["--weights-memory", "map"]])
def test_verify_and_evaluate_hand_the_option_to_their_child(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = export_tiny("cpu"), []

    def noted(module: str, run: Any) -> Any:
        def run_in_child(name: str, artifact: Path, job: Path, result: Path) -> None:
            with np.load(job, allow_pickle=False) as values:
                seen.append((module, str(values["weights_memory"])))
            run(name, artifact, job, result)

        return run_in_child

    for module in (verify, evaluate):
        monkeypatch.setattr(module, "run_in_child", noted(module.__name__, module.run_in_child))
    text = tmp_path / "text.txt"
    text.write_text("Alice was beginning to get very tired. " * 2)
    checkpoint = ["--checkpoint", str(tiny_checkpoint())]
    assert main(["verify", str(folder), *checkpoint, *given]) == 0
    assert main(["evaluate", str(folder), *checkpoint, "--text", str(text), "--tokens", "40", *given]) == 0
    expected = given[-1] if given else COPY
    assert seen == [(verify.__name__, expected), (evaluate.__name__, expected)]


def test_the_servers_benchmark_starts_it_with_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def refuse(command: list[str], **_: object) -> None:
        started.append(command)
        raise UserError("enough seen")

    monkeypatch.setattr(serve_bench.subprocess, "Popen", refuse)
    assert serve_bench.main(["folder", "--weights-memory", "map"]) == 2
    assert started[0][-2:] == ["--weights-memory", "map"]
