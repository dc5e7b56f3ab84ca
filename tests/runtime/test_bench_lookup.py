"""`bench --lookup`: the answers to texts with and without prompt lookup, on a real artifact of 64 tokens."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from edgellama.__main__ import main
from edgellama.bench import command, report
from edgellama.bench.workload import Settings
from edgellama.errors import UserError
from edgellama.generation.speculative import Pace
from edgellama.model import LlamaForCausalLM

DATA = Path(__file__).parents[1] / "data"
ARTIFACT = DATA / "compatibility/0.2.0/cpu-int8"
QUICK = Settings(threads=1, prompt_lengths=(5,), depths=(8,), repeats=2, steps=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("texts")
    texts = {"one.txt": "abcabcabcabc", "two.txt": "hello"}
    for name, text in texts.items():
        (folder / name).write_text(f"{text}\n")
    return [str(folder / name) for name in texts]


def test_each_text_is_answered_with_and_without_guesses(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "length", lambda self: self._next)  # does not depend on the times
    found = command.bench(ARTIFACT, QUICK, lookup=files)
    one, two = found["prompt_lookup"]
    assert [entry["name"] for entry in (one, two)] == ["one.txt", "two.txt"]
    model = LlamaForCausalLM.from_pretrained(ARTIFACT, threads=1)
    for entry, text in ((one, "abcabcabcabc"), (two, "hello")):
        prompt = model.tokenizer.encode(text)
        answer = model.generate([prompt], max_new_tokens=64 - len(prompt), prompt_lookup_num_tokens=7, do_sample=False)
        assert entry["prompt_tokens"] == len(prompt) and entry["new_tokens"] == answer.shape[1] - len(prompt)
        assert 0 <= entry["accepted_tokens"] <= entry["guessed_tokens"]
        assert all(len(entry[name]["samples"]) == 2 for name in ("plain_seconds", "lookup_seconds", "gain"))
        plain, lookup = (entry[name]["samples"] for name in ("plain_seconds", "lookup_seconds"))
        assert entry["gain"]["samples"] == [a / b for a, b in zip(plain, lookup, strict=True)]
    assert one["guessed_tokens"] > 0
    documented = importlib.import_module("edgellama.bench").__doc__ or ""
    assert all(key in documented for key in one)
    table = report.table(found)
    assert "one.txt" in table and f"{one['accepted_tokens']} of {one['guessed_tokens']}" in table


def test_without_texts_there_is_no_table() -> None:
    assert report.lookup_table([]) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "cannot be read"),
        ("bytes.txt", b"\xff\xfe", "cannot be read"),
        ("long.txt", b"x" * 63, "63 tokens; needed: 1 to 62"),
    ],
)
def test_texts_that_cannot_be_measured_are_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    options = ["--prompt-lengths", "5", "--depths", "8", "--repeats", "1", "--lookup", str(tmp_path / name)]
    assert main(["bench", str(ARTIFACT), *options]) == 2
    assert message in capsys.readouterr().err


def test_an_artifact_without_a_tokenizer_reads_no_text() -> None:
    engine: Any = None
    with pytest.raises(UserError, match="has no tokenizer"):
        command.lookup_texts(engine, None, ["x.txt"])
    assert command.lookup_texts(engine, None, []) == []
