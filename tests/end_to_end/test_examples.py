"""Runs the examples: the two tutorial scripts print the same text, and the app answers from many threads."""

from __future__ import annotations

import difflib
import http.client
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError

import pytest
import torch
from transformers import AutoTokenizer

from support.child import REPOSITORY, run_child
from support.exported import chat_checkpoint, export_tiny, reference

EXAMPLES = REPOSITORY / "runtime" / "examples"
NEW_TOKENS = 12


def run(name: str, *arguments: str) -> tuple[str, str]:
    """The output of an example: (greedy answers, sampled answers)."""
    done = run_child("-m", f"edgellama.examples.{name}", *arguments, "--max-new-tokens", str(NEW_TOKENS))
    greedy, _, sampled = done.stdout.partition("Sampled:\n")
    return greedy, sampled


def test_the_tutorial_scripts_print_the_same_text() -> None:
    ours, our_sample = run("generate", str(export_tiny(chat=True)))
    theirs, their_sample = run("generate_pt", str(chat_checkpoint()))
    assert ours == theirs
    assert ours.startswith("One prompt:\nA list of colors: red, blue") and "\nPortugal is" in ours
    # Sampled texts differ because the random numbers differ; the seed makes each text repeatable.
    assert "Portugal is" in our_sample and "Portugal is" in their_sample
    assert run("generate", str(export_tiny(chat=True))) == (ours, our_sample)
    assert run("generate", str(export_tiny(chat=True)), "--seed", "1")[1] != our_sample


def test_the_two_scripts_are_one_line_by_line() -> None:
    """Readers can compare the scripts line by line: only import, model, tensors and seed differ."""
    ours, theirs = ((EXAMPLES / name).read_text().splitlines() for name in ("generate.py", "generate_pt.py"))
    changed = [line for line in difflib.ndiff(ours, theirs) if line[0] in "-+"]
    words = ("import", "from_pretrained", "return_tensors", "seed", "parser", "python -m", "generate", '"""')
    assert [line for line in changed if line[2:].strip() and not any(word in line for word in words)] == []


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "edgellama.examples.embed_in_app", str(export_tiny(chat=True)), "--port", "0"]
    app = subprocess.Popen(
        [*command, "--max-new-tokens", str(NEW_TOKENS)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert app.stdout is not None
    yield app.stdout.readline().split()[1]
    app.send_signal(signal.SIGINT)
    assert app.wait(timeout=30) == 0  # Ctrl-C ends the app, even if a client still waits for an answer


def ask(url: str, question: str) -> str:
    with urllib.request.urlopen(url, data=question.encode()) as answer:
        return str(answer.read().decode())


def expected(question: str) -> str:
    """The answer of transformers."""
    tokenizer = AutoTokenizer.from_pretrained(chat_checkpoint())
    chat = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        out = reference().generate(ids.input_ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    return str(tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True))


def test_threads_that_ask_at_once_get_their_own_answers(url: str) -> None:
    questions = [f"What is {number}?" for number in range(8)]
    with ThreadPoolExecutor(len(questions)) as threads:
        answers = list(threads.map(lambda question: ask(url, question), questions))
    assert answers == [expected(question) for question in questions]
    assert len(set(answers)) > 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "0 bytes"),
        (b"\xff", "decode byte 0xff"),
        (b"x" * 65_000, "65000 bytes"),
        (b"x" * 500, "this artifact holds"),
    ],
)
def test_a_question_that_does_not_fit_is_a_400_and_the_app_goes_on(url: str, body: bytes, message: str) -> None:
    with pytest.raises(HTTPError) as refused:
        urllib.request.urlopen(url, data=body)
    assert refused.value.code == 400
    assert message in refused.value.read().decode()
    assert ask(url, "What is 1?") == expected("What is 1?")


def test_a_client_that_disconnects_does_not_delay_the_others(url: str) -> None:
    place = url.split("/")[2]
    for _ in range(3):
        gone = http.client.HTTPConnection(place)
        gone.request("POST", "/", body="What is 2?")
        gone.close()
    assert ask(url, "What is 3?") == expected("What is 3?")
