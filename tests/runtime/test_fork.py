"""A forked child of a process that loaded a model: clear errors instead of a wait for threads that do not exist there.

Each test forks in a child process of its own, which has loaded a tiny artifact. A hang fails by the time limit.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.child import run_child

LIMIT = 60  # seconds

SCRIPT = """
import multiprocessing, os, sys, threading, time
from edgellama.conversation.chat import Chat
from edgellama.errors import UserError
from edgellama.model import LlamaForCausalLM

PATH = sys.argv[1]
PROMPT = [[5, 6, 7]]
model = LlamaForCausalLM.from_pretrained(PATH, threads=2)

def generate(model=model):
    return model.generate(PROMPT, max_new_tokens=4, do_sample=False).tolist()

def error_of(use):
    try:
        return f"no error: {use()}"
    except UserError as error:
        return str(error)

def in_child(work):
    # Runs `work` in a forked child, which ends as Python ends, with all its destructors.
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0

def refused(use):
    found = error_of(use)
    assert f"loaded in process {os.getppid()}" in found and "after the fork" in found, found

expected = generate()
BODY
assert generate() == expected
print("done")
"""

BODIES = {
    "every use is refused": """
session, chat = model.session(), Chat(model)
session.generate(PROMPT[0], max_new_tokens=2)
running = model.stream(PROMPT[0], max_new_tokens=8)
held = [next(running).id]
def work():
    refused(generate)
    refused(lambda: generate(model=model))
    refused(lambda: list(model.stream(PROMPT[0], max_new_tokens=4)))
    refused(lambda: list(running))
    refused(lambda: session.generate([1], max_new_tokens=4))
    refused(lambda: session.save("x"))
    refused(lambda: model.generate(PROMPT, max_new_tokens=4, num_beams=2))
    refused(model.forget)
    model.cancel()
    assert model.engine.vocab_size
in_child(work)
held += [piece.id for piece in running]
assert len(held) == 8
""",
    "the model is deleted": """
def work():
    global model, generate
    del model, generate
in_child(work)
""",
    "the child loads the model again": """
def work():
    assert generate(LlamaForCausalLM.from_pretrained(PATH, threads=2)) == expected
    refused(generate)
in_child(work)
""",
    "a child of a child": """
loaded_in = os.getpid()
def work():
    def deeper():
        assert f"loaded in process {loaded_in}," in error_of(generate)
    in_child(deeper)
in_child(work)
""",
    "a pool of processes": """
with multiprocessing.get_context("fork").Pool(2) as pool:
    try:
        print(pool.apply(generate))
    except UserError as error:
        assert "spawn" in str(error)
    else:
        raise AssertionError
""",
    "another thread generates": """
stop = threading.Event()
def others():
    while not stop.is_set():
        generate()
thread = threading.Thread(target=others)
thread.start()
for _ in range(10):
    time.sleep(0.01)
    in_child(lambda: refused(generate))
stop.set()
thread.join()
""",
    "another thread loads": """
def load():
    LlamaForCausalLM.from_pretrained(PATH, threads=2)
def work():
    os.write(2, b"standard error of the child\\n")
    print("and of Python", file=sys.stderr, flush=True)
    load()
standard_error = sys.stderr
thread = threading.Thread(target=lambda: [load() for _ in range(3)], daemon=True)
thread.start()
while sys.stderr is standard_error:
    pass
in_child(work)
thread.join()
""",
}


@pytest.mark.parametrize("what", BODIES)
def test_fork(tiny_artifact: Path, what: str) -> None:
    done = run_child("-c", SCRIPT.replace("BODY", BODIES[what]), str(tiny_artifact), timeout=LIMIT)
    assert done.stdout.splitlines()[-1] == "done"
    if what == "another thread loads":
        assert "standard error of the child" in done.stderr and "and of Python" in done.stderr


def test_a_server_does_not_start_in_a_forked_child(tiny_artifact: Path) -> None:
    body = """
from edgellama.serve.scheduler import Scheduler
scheduler = Scheduler(model.engine)
in_child(lambda: refused(scheduler.start))
"""
    run_child("-c", SCRIPT.replace("BODY", body), str(tiny_artifact), timeout=LIMIT)
