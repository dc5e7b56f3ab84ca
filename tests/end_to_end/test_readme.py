"""Every command and every Python block of the root README runs, in order, in the checkout.

A command that cannot run inside a test (a download from a model hub, the test suite itself) has a stand-in in
STAND_INS, with the reason beside it. The names that a user fills in (`./my-llama`, `ARTIFACT`) become a tiny model.
A new command in the README runs without any change here, or fails the test.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from support.child import REPOSITORY
from support.exported import chat_checkpoint, export_tiny

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "shell" for line in block.splitlines() if line.strip()]
COMMANDS = [line.split("  #")[0].strip() for line in LINES]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
STAND_INS = {
    "make test": "make -n test",  # this test is part of it
    "make export MODEL=llama3-8b": "make -n export MODEL=llama3-8b",  # needs a model hub
    "make export MODEL=someone/their-llama": "make -n export MODEL=someone/their-llama",  # the same
}
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(command: list[str]) -> str:
    """Run a command in the checkout and return its standard output."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def serve_and_stop(command: list[str]) -> str:
    """Start the endpoint, ask whether it is healthy, stop it as Ctrl-C does; return what /health says."""
    process = subprocess.Popen(
        [*command, "--port", "0"], cwd=REPOSITORY, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        with urllib.request.urlopen(f"{url}/health") as answer:
            return str(answer.read().decode())
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def names(smollm2_gguf: Path) -> dict[str, str]:
    """What the names in the README's commands become."""
    artifact = str(export_tiny("cpu", chat=True))
    return {"./my-llama": str(chat_checkpoint()), "model.Q4_0.gguf": str(smollm2_gguf), "ARTIFACT": artifact}


def test_the_readme_has_the_blocks_that_this_test_runs() -> None:
    assert len(README.splitlines()) <= 125
    assert COMMANDS[:2] == ['make run PROMPT="Why is the sky blue?"', "make test"]
    assert {kind for kind, _ in BLOCKS} == {"shell", "python"}
    assert set(STAND_INS) <= set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command: str, names: dict[str, str], tmp_path: Path) -> None:
    given = STAND_INS.get(command, command)
    for name, value in names.items():
        given = re.sub(rf"(?<![\w/]){re.escape(name)}(?!\w)", value, given)
    words = shlex.split(given)
    if given != command and words[:2] == ["make", "export"]:
        words += [f"OUT={tmp_path / 'artifact'}", "CONTEXT=64", "BUCKETS=8"]  # a tiny model has a short context
    if words[:2] == ["edgellama", "evaluate"]:
        words += ["--tokens", "200"]
    if words[:2] == ["edgellama", "serve"]:
        assert "ok" in serve_and_stop(words)
        return
    out = run(words)
    if command.startswith("make run") or words[1] in ("generate", "plan", "inspect", "bench"):
        assert out.strip()


@pytest.mark.slow
def test_the_python_blocks_run_in_order_and_print_text() -> None:
    run(["make", "run"])  # the artifact that the blocks load
    marker = "-" * 20
    out = run([sys.executable, "-c", f"\nprint({marker!r})\n".join(PYTHON)])
    streamed, generated = out.split(marker)
    assert len(streamed.split()) > 10
    assert "A list of colors: red, blue" in generated and "Portugal is" in generated
