"""The Makefile passes every value as it was given, to a program that prints its arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOSTILE = [
    'It\'s "so" simple',
    "costs $5, $HOME and $$",
    "`touch CANARY` $(touch CANARY) $(shell touch CANARY) ${PATH}",
    "two\nlines\n\ttab",
    "-h",
    "--help me",
    "# 100% \\ & ; | > CANARY ! * ?",
    "ends with a backslash\\",
    "-",
    "\u00e9\u4e16",
]


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A stand-in for Python: appends its arguments to calls.json, and prints the folder that artifact-folder would."""
    path = tmp_path / "stub"
    path.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"with open({str(tmp_path / 'calls.json')!r}, 'a') as f:\n    f.write(json.dumps(sys.argv[1:]) + '\\n')\n"
        f"if 'artifact-folder' in sys.argv:\n    print({str(tmp_path / 'the default')!r})\n"
    )
    path.chmod(0o755)
    return path


def make(stub: Path, *words: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    """Run make with `stub` as its Python. Return the process, and the arguments of each call of the stub."""
    command = ["make", "--silent", "--assume-old=.venv/ready", f"PYTHON={stub}", f"PYTHON3={stub}", *words]
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=plain | environment)
    calls = stub.parent / "calls.json"
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    assert not (ROOT / "CANARY").exists()
    return done, [json.loads(line) for line in lines]


def option(name: str, value: str) -> list[str]:
    """The arguments of an option: one word if the value looks like an option itself."""
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def path(value: str) -> str:
    return f"./{value}" if value.startswith("-") else value


@pytest.mark.parametrize("value", HOSTILE)
def test_every_value_arrives_as_it_was_given(stub: Path, value: str) -> None:
    default = str(stub.parent / "the default")
    done, calls = make(stub, "run", f"PROMPT={value}")
    assert done.returncode == 0, done.stderr
    assert calls[-1] == ["-m", "edgellama", "generate", default, *option("prompt", value)]
    done, calls = make(stub, "run", PROMPT=value)
    assert calls[-1][4:] == option("prompt", value)

    names = ("TARGET", "WEIGHTS", "CACHE", "CONTEXT", "BUCKETS", "BATCH", "LORA", "OUT", "SEED")
    done, calls = make(stub, "export", f"MODEL={value}", *(f"{name}={value}" for name in names))
    words = [word for name in names for word in option(name.lower(), value)]
    assert (done.returncode, calls) == (0, [["-m", "edgellama", "export", path(value), *words]])
    _, calls = make(stub, "plan", f"MEASURED={value}")
    assert calls[0][4:] == option("measured", value)
    _, calls = make(stub, "torture", "--assume-old=.venv/ready-test", f"ONLY={value}", f"SEED={value}", "QUICK=1")
    assert calls == [["tests/torture", "--quick", *option("only", value), *option("seed", value)]]
    _, calls = make(stub, "fuzz", "--assume-old=.venv/ready-test", f"TARGET_NAME={value}", f"SECONDS={value}")
    assert calls == [["tests/fuzz", *option("target", value), *option("seconds", value)]]
    python = {"build_wheels": f"{stub} requirements/build_wheels.py"}
    words = [f"{name}={text}" for name, text in python.items()]
    _, calls = make(stub, "wheel", "--assume-old=build/wheels/env/ready", *words, f"MACHINE={value}")
    assert calls == [["requirements/build_wheels.py", *option("machine", value)]]
    _, calls = make(stub, "convert", f"ARTIFACT={value}", f"SOC={value}", f"OUT={value}")
    assert calls == [["-m", "exporter", "convert", path(value), *option("soc", value), *option("out", value)]]
    _, calls = make(stub, "board-check", f"PROBE={value}", f"DEVICE={value}")
    assert calls == [["-m", "exporter", "board-check", *option("probe", value), *option("device-id", value)]]


def test_only_the_default_artifact_is_exported(stub: Path) -> None:
    default = str(stub.parent / "the default")
    done, calls = make(stub, "chat", "MODEL=m", "BATCH=4")
    assert calls == [
        ["-m", "exporter", "artifact-folder", "m", "--batch", "4"],
        ["-m", "edgellama", "export", "m", "--batch", "4", "--out", default],
        ["-m", "exporter", "artifact-folder", "m", "--batch", "4"],
        ["-m", "edgellama", "chat", default],
    ], done.stderr
    for target in ("run", "chat", "bench", "check-install"):
        done, calls = make(stub, target, "ARTIFACT=a $(mis) `spelt` name")
        assert (done.returncode, calls) == (2, []), target
        assert "error: no artifact at a $(mis) `spelt` name (ARTIFACT)" in done.stderr


def test_an_artifact_that_exists_is_used(stub: Path) -> None:
    folder = stub.parent / "my 'own' $artifact"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    done, calls = make(stub, "bench", f"ARTIFACT={folder}", "MODEL=other")
    assert (done.returncode, calls) == (0, [["-m", "edgellama", "bench", str(folder)]])
