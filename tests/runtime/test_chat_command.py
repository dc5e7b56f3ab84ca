"""`edgellama chat` from a pipe and from a terminal: answers, slash commands and Ctrl-C."""

from __future__ import annotations

import io
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from edgellama.artifact.manifest import Artifact
from edgellama.conversation.chat import Chat
from support.command_line import run_main
from support.tiny import NumpyGraph, artifact, numpy_graphs
from support.toy_chat import CONTEXT, tokenizer, write_files

SHORT = ("--max-new-tokens", "6")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    opened = artifact(tmp_path / "toy", context=CONTEXT, eos_token_id=())
    write_files(opened.path)
    monkeypatch.setattr("edgellama.engine.engine.LiteGraph", numpy_graphs(opened))
    monkeypatch.setattr("edgellama.engine.engine.check_graphs", lambda _: None)  # its graph file is a dummy
    monkeypatch.chdir(tmp_path)
    return opened.path


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """pipe(text): standard input contains `text`."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """terminal(line, ...): input() returns or raises these one after another, then signals the end."""

    def set_up(*lines: str | BaseException) -> None:
        left = list(lines)

        def typed(prompt: str) -> str:
            line = left.pop(0) if left else EOFError()
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setattr("builtins.input", typed)

    return set_up


def expected(folder: Path, *texts: str, system: str | None = None) -> str:
    """The text that the answers print."""
    from edgellama.model import LlamaForCausalLM

    chat = Chat(LlamaForCausalLM.from_pretrained(folder), system)
    return "".join("".join(piece.text for piece in chat.ask(text, max_new_tokens=6)) + "\n" for text in texts)


def test_settings_out_of_range_are_reported_before_the_first_message(folder: Path, pipe: Any, capfd: Any) -> None:
    pipe("")
    status, out, err = run_main(capfd, "chat", str(folder), "--temperature", "-1")
    assert status == 2 and not out and "temperature is -1" in err and "Traceback" not in err


def test_each_line_of_a_pipe_is_a_message(folder: Path, pipe: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pipe("hello\n\n  why\n/exit\nnever read\n")
    status, out, err = run_main(capfd, "chat", str(folder), *SHORT)
    assert status == 0
    assert out == expected(folder, "hello", "why")
    figures = [line for line in err.splitlines() if line.startswith("[length; prefill ")]
    assert len(figures) == 2 and "/help" not in err
    # "hello" in the template's frame; then the first answer's last token, and the second message in its frame
    assert "prefill 23 tokens" in figures[0] and "prefill 25 tokens" in figures[1]


def test_reset_starts_again_with_the_same_system_message(
    folder: Path, pipe: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe("hello\n/reset\nhello\n")
    _, out, err = run_main(capfd, "chat", str(folder), "--system", "be kind", *SHORT)
    assert out == expected(folder, "hello", system="be kind") * 2 != expected(folder, "hello") * 2
    assert "[a new conversation]" in err


def test_a_saved_conversation_goes_on(folder: Path, pipe: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pipe("hello\n/save 'my chat'\n")
    _, out, err = run_main(capfd, "chat", str(folder), *SHORT)
    assert "[2 messages saved to my chat]" in err and Path("my chat").is_file()
    pipe("/load 'my chat'\nwhy\n")
    _, more, err = run_main(capfd, "chat", str(folder), *SHORT)
    assert "[2 messages loaded from my chat]" in err and "prefill 24 tokens" in err
    assert out + more == expected(folder, "hello", "why")


def test_sampling_options_are_those_of_generate(folder: Path, pipe: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def answers(*options: str) -> str:
        pipe("hello\n")
        return run_main(capfd, "chat", str(folder), *SHORT, *options)[1]

    hot = ("--temperature", "9", "--top-k", "0")
    assert answers("--seed", "1", *hot) == answers("--seed", "1", *hot) != answers("--seed", "2", *hot)


@pytest.mark.parametrize("how", ["--regex", "--json-schema"])
def test_every_answer_matches_the_grammar(folder: Path, pipe: Any, capfd: pytest.CaptureFixture[str], how: str) -> None:
    Path("schema.json").write_text('{"type": "boolean"}')
    given, answers = ("[ab]{2,3}", r"[ab]{2,3}") if how == "--regex" else ("schema.json", r"\s*(true|false)\s*")
    folder = artifact(folder.parent / "eos", context=CONTEXT, eos_token_id=(tokenizer().token_to_id("</s>"),)).path
    write_files(folder)
    pipe("hello\nwhy\nhello\n")
    status, out, err = run_main(capfd, "chat", str(folder), how, given, "--max-new-tokens", "12")
    assert status == 0, err
    assert len(out.splitlines()) == 3 and all(re.fullmatch(answers, line) for line in out.splitlines())
    assert err.count("[eos; prefill ") == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/bogus", "/bogus is not a command. /help lists the commands"),
        ("/save", "/save takes one file name, and 0 are given"),
        ("/load a b", "/load takes one file name, and 2 are given"),
        ("/load none", "none: no such file"),
        ("/save 'x", "Close the quotes"),
        ("/save x", "nothing has been said yet"),
        ("/reset now", "/reset takes no argument"),
        ("h\udcff", "not valid Unicode"),
        ("a" * 300 + "bc" * 300, r"this artifact holds 512 (context)"),
    ],
)
def test_an_error_ends_a_pipe_but_not_a_terminal(
    folder: Path, pipe: Any, terminal: Any, capfd: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    pipe(text + "\nhello\n")
    status, out, err = run_main(capfd, "chat", str(folder), *SHORT)
    assert status == 2 and out == "" and message in err and "Traceback" not in err
    terminal(text, "hello")
    status, out, err = run_main(capfd, "chat", str(folder), *SHORT)
    assert status == 0 and f"error: {message}"[7:] in err
    assert out == expected(folder, "hello")


def test_help_lists_every_command(folder: Path, terminal: Any, capfd: pytest.CaptureFixture[str]) -> None:
    terminal("/help")
    status, out, err = run_main(capfd, "chat", str(folder))
    assert status == 0 and out == ""
    assert all(f"/{name} " in err for name in ("reset", "save", "load", "help", "exit"))
    assert "Ctrl-D" in err


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Any:
    """ctrl_c(n, ...): SIGINT arrives during the n-th run of the graph."""

    def set_up(*times: int) -> None:
        run_graph, calls = NumpyGraph.run, []

        def interrupted(self: NumpyGraph, bound: list[Any]) -> Any:
            calls.append(1)
            if len(calls) in times:
                os.kill(os.getpid(), signal.SIGINT)
            return run_graph(self, bound)

        monkeypatch.setattr(NumpyGraph, "run", interrupted)

    return set_up


def test_ctrl_c_ends_the_answer_and_the_chat_goes_on(
    folder: Path, terminal: Any, ctrl_c: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    ctrl_c(4)
    terminal("hello", KeyboardInterrupt(), "/save it", "/reset", "hello")
    status, out, err = run_main(capfd, "chat", str(folder), *SHORT)
    assert status == 0 and signal.getsignal(signal.SIGINT) is before
    assert "[cancelled; prefill 23 tokens" in err and "[length; prefill " in err
    assert "> \n(Ctrl-D ends the chat)\n> [2 messages saved to it]\n" in err
    cut, whole = out.splitlines()
    assert whole + "\n" == expected(folder, "hello") and whole.startswith(cut) and 0 < len(cut) < len(whole)


def test_a_second_ctrl_c_ends_the_program(
    folder: Path, pipe: Any, ctrl_c: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # so that the first Ctrl-C has no effect
    monkeypatch.setattr("edgellama.generation.stream.Stream.cancel", lambda self: None)
    ctrl_c(4, 5)
    pipe("hello\n")
    status, _, err = run_main(capfd, "chat", str(folder), *SHORT)
    assert status == 130 and "Traceback" not in err


def test_a_full_context_is_reported(folder: Path, pipe: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pipe("abc\n" * 20)
    status, _, err = run_main(capfd, "chat", str(folder), "--max-new-tokens", "30")
    assert status == 0 and err.count("[length; prefill") == 20
    assert "[the context is full: the oldest " in err


def test_a_missing_template_is_reported_before_the_first_message(
    folder: Path, pipe: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    write_files(folder, None)
    pipe("")
    status, _, err = run_main(capfd, "chat", str(folder))
    assert status == 2 and "no chat template" in err
    assert Artifact.open(folder).manifest.context == CONTEXT
