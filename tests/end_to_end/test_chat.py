"""Conversations through MindSpore Lite: the command line, a float16 cache in a file, and Ctrl-C in a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgellama.artifact.manifest import Artifact
from support.child import REPOSITORY, run_child, run_python
from support.exported import export, export_tiny

CHAT = ["-m", "edgellama", "chat"]
OPTIONS = ["--max-new-tokens", "8", "--do-sample", "--seed", "1", "--temperature", "0.7"]


@pytest.fixture(scope="module", params=["portable", "float16", "int8"])
def artifact(request: pytest.FixtureRequest) -> Path:
    """The portable op set, and the cpu op set with the caches that only it has."""
    sizes = ["--context", "512", "--buckets", "8,32"]
    if request.param == "portable":
        return export("chat-portable", "--target", "portable", "--weights", "fp32", *sizes)
    return export(f"chat-{request.param}", "--target", "cpu", "--weights", "int8", "--cache", request.param, *sizes)


def chat(artifact: Path, text: str, *options: str) -> tuple[bytes, str]:
    done = run_child(*CHAT, str(artifact), *options, input=text.encode(), text=False)
    return done.stdout, done.stderr.decode()


def test_a_conversation_goes_on_in_another_process(artifact: Path, tmp_path: Path) -> None:
    saved = tmp_path / "s"
    begun, _ = chat(artifact, "hi\nwhy\n", *OPTIONS)
    whole, err = chat(artifact, f"hi\nwhy\n/save {saved}\nno\n", *OPTIONS)
    figures = re.findall(r"prefill (\d+) tokens", err)
    assert len(figures) == 3 and whole.startswith(begun)
    assert int(figures[1]) < int(figures[0]) + 4  # the second message, without the first
    later, err = chat(artifact, f"/load {saved}\nno\n", *OPTIONS)
    assert begun + later == whole
    assert re.findall(r"prefill (\d+) tokens", err) == figures[2:]
    cache = Artifact.open(artifact).manifest.cache
    bytes_per_token = cache.nbytes // (cache.shape[0] * cache.shape[2]) * 3 // 2  # an int8 cache also has scales
    assert saved.stat().st_size < 96 * bytes_per_token + 8192


def test_reused_tokens_give_the_logits_of_a_fresh_start(artifact: Path) -> None:
    """Split at any position, a prompt gives nearly the same logits; the rest of the cache has no influence."""
    code = (
        "import json, sys, numpy as np\n"
        "from edgellama import LlamaForCausalLM\n"
        "model = LlamaForCausalLM.from_pretrained(sys.argv[1])\n"
        "prompt = np.random.default_rng(0).integers(8, 250, 40).tolist()\n"
        "settings = {'max_new_tokens': 1, 'return_dict_in_generate': True, 'output_logits': True}\n"
        "def logits(prompt):\n"
        "    out = model.generate([prompt], reuse_prefix=True, **settings)\n"
        "    return out.logits[0][0], out.timings.cached_tokens\n"
        "fresh, none = logits(prompt)\n"
        "found = []\n"
        "for cut in (1, 7, 8, 9, 32, 33, 39):\n"
        "    model.forget()\n"
        "    model.generate([prompt[:cut] + [255, 254, 253]], max_new_tokens=9)\n"
        "    again, cached = logits(prompt)\n"
        "    found.append([cut, cached, float(np.abs(again - fresh).max() / np.ptp(fresh))])\n"
        "print(json.dumps([none, found]))"
    )
    none, found = run_python(code, str(artifact))
    weights = Artifact.open(artifact).manifest.weights_format
    assert none == 0 and [cached for _, cached, _ in found] == [cut for cut, _, _ in found]
    assert max(error for *_, error in found) < (1e-5 if weights == "fp32" else 2e-2)


def test_ctrl_c_in_a_terminal_ends_the_answer_only() -> None:
    """Sends a real signal in a real terminal, during a slow answer."""
    code = (
        "import sys, time\n"
        "from edgellama.__main__ import main\n"
        "from edgellama.engine.engine import Engine\n"
        "forward = Engine.forward\n"
        "def slow(*arguments, **named):\n"
        "    time.sleep(0.1)\n"
        "    return forward(*arguments, **named)\n"
        "Engine.forward = slow\n"
        "sys.exit(main())"
    )
    master, slave = pty.openpty()
    command = [sys.executable, "-c", code, "chat", str(export_tiny("cpu", chat=True)), "--repetition-penalty", "1.3"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([master], [], [], 120)[0], seen
            try:
                seen += os.read(master, 1000)
            except OSError as error:  # the terminal is closed: the program has ended
                raise AssertionError(seen) from error
        seen = seen.partition(text)[2]

    try:
        for _ in range(2):
            wait_for(b"> ")
            os.write(master, b"hello\n")
            wait_for(b"hello\r\n")
            while len(seen) < 4:  # of the answer
                seen += os.read(master, 1000)
            process.send_signal(signal.SIGINT)
            wait_for(b"[cancelled; ")
        wait_for(b"> ")
        os.write(master, b"\x04")
        assert process.wait(timeout=60) == 0
        assert b"Traceback" not in seen
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
