"""Chat templates are code of a stranger: each fault and each excess is one clear error, in bounded time."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgellama.artifact import hash_cache
from edgellama.errors import UserError
from edgellama.limited import worker
from edgellama.text import chat_template
from edgellama.text.chat_template import ChatTemplate
from edgellama.text.template_files import MAX_TEMPLATE, check_syntax, templates_of_config
from support.toy_tokenizers import byte_level, save

CHAT = [{"role": "user", "content": "hi"}]
LARGE = "{{ messages[0].content * 10**10 }}"
EXCESSIVE = {
    LARGE: "256 MiB of memory",
    "{{ messages[0].content|center(10**9) }}": "256 MiB of memory",
    "{{ '%1000000000d' % messages|length }}": "256 MiB of memory",
    "{{ '{:1000000000}'.format(messages|length) }}": "256 MiB of memory",
    "{{ messages|tojson(indent=10**9) }}": "256 MiB of memory",
    "{{ ('a' * 10**6).replace('a', messages[0].content * 10**6) }}": "256 MiB of memory",
    "{% set n = namespace(s='a') %}{% for _ in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}": "256 MiB|seconds of",
    "{% for _ in range(99999) %}{{ messages[0].content * 10**4 }}{% endfor %}": "more than 16,777,216 characters",
    "{% for _ in range(10**9) %}{% endfor %}": "Range too big",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "nested too deeply",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "seconds of processor time",
    "{{ (messages|length + 1) ** (10**10) }}": "seconds of processor time|256 MiB of memory",
}
FAULTY = {
    "{{ absent.field }}": "'absent' is undefined",
    "{{ messages + 1 }}": "can only concatenate list",
    "{{ 1 / 0 }}": "division by zero",
    "{{ messages.__class__.__mro__ }}": "unsafe",
    "{{ absent | tojson }}": "not JSON serializable",
    "{% include 'other' %}": "no loader",
    "{{ messages|map('nothing')|list }}": "No filter named",
    "{{ raise_exception('one\n\tat a time.') }}": "one  at a time. Change them",
    "{{ strftime_now(3) }}": "must be str",
}
NOT_VALID = {
    "a\n{% if %}": "line 2: Expected an expression",
    "{{ 1 | nothing }}": "line 1: No filter named 'nothing'",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "nested too deeply",
    "{% for i in [1] %}" * 30 + "{% endfor %}" * 30: "too many statically nested blocks",
    "{{ 1" + "0" * 5000 + " }}": "4300 digits",
    "{{ [[1] * 10**5] * 10**5 }}": "seconds of processor time|256 MiB of memory",
    "x" * (MAX_TEMPLATE + 1): "has 262,145 characters; at most 262,144",
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "LIMITS", replace(chat_template.LIMITS, seconds=0.3))


@pytest.fixture
def no_child_stays() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children()}
    yield
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.parametrize(("source", "reason"), [*EXCESSIVE.items(), *FAULTY.items()])
def test_a_template_that_fails_is_one_clear_error(source: str, reason: str) -> None:
    template = ChatTemplate(source)
    before = psutil.Process().memory_info().rss
    start = time.monotonic()
    with pytest.raises(UserError, match=f"the chat template refuses these messages: .*({reason})"):
        template.render(CHAT, {})
    assert time.monotonic() - start < 20
    assert psutil.Process().memory_info().rss - before < 100e6


@pytest.mark.parametrize(("source", "reason"), NOT_VALID.items())
def test_a_template_that_cannot_be_compiled_names_its_file(source: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"my.jinja: the chat template cannot be compiled: .*({reason})"):
        ChatTemplate(source, "my.jinja").check()


def test_the_syntax_is_checked_without_running_anything(tmp_path: Path) -> None:
    check_syntax(tmp_path)
    path = tmp_path / "chat_template.jinja"
    path.write_text("{{ 'a' * 10**10 }}")
    check_syntax(tmp_path)
    for wrong in ("{% if %}", "{{ " + "(" * 5000, "{{ 1" + "0" * 5000 + " }}", "x" * (MAX_TEMPLATE + 1)):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"chat_template\.jinja: the chat template cannot be compiled"):
            check_syntax(tmp_path)
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja: the chat template is not UTF-8"):
        check_syntax(tmp_path)


@pytest.mark.parametrize("value", [3, {"a": "b"}, ["a"], [{"name": "default", "template": 3}], [{"template": "x"}]])
def test_a_template_of_another_type_is_reported(value: Any) -> None:
    with pytest.raises(UserError, match=r"chat_template is a JSON .*; needed: a text"):
        templates_of_config({"chat_template": value}, "tokenizer_config.json")


def test_the_template_works_again_after_a_limit() -> None:
    template = ChatTemplate("{% if big %}{{ 'a' * 10**10 }}{% endif %}{{ messages[0].content }}".replace("'a'", "big"))
    assert template.render(CHAT, {}) == "hi"
    for _ in range(2):
        with pytest.raises(UserError, match="256 MiB"):
            template.render(CHAT, {"big": "a"})
        assert template.render(CHAT, {}) == "hi"
    child = template._process._child
    assert child is not None
    child._process.kill()  # as the kernel does when memory runs out
    with pytest.raises(UserError, match="the chat template"):
        template.render(CHAT, {})
    assert template.render(CHAT, {}) == "hi"


@pytest.mark.usefixtures("no_child_stays")
def test_no_process_stays_behind() -> None:
    descriptors = psutil.Process().num_fds()
    for _ in range(3):
        template = ChatTemplate("{{ messages[0].content }}")
        assert template.render(CHAT, {}) == "hi"
        del template
    assert psutil.Process().num_fds() == descriptors


def test_an_ordinary_template_is_rendered_within_milliseconds() -> None:
    template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    template.render(CHAT, {})
    times = []
    for _ in range(50):
        start = time.perf_counter()
        template.render(CHAT * 20, {"tools": None})
        times.append(time.perf_counter() - start)
    assert sorted(times)[10] < 0.005


def test_long_and_unusual_values_arrive_unchanged() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ n + 1 }}{{ m.a }}{{ x is none }}")
    text = "é🙂\udc80\0" * 300_000
    variables: dict[str, Any] = {"n": np.int64(2), "m": OrderedDict(a=1.5), "x": None}
    assert template.render([{"role": "user", "content": text}], variables) == f"{text}31.5True"


def cycle() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize("value", [object(), cycle(), {1, 2}, {("a",): 1}, b"bytes", pytest.param(10**5000, id="huge")])
def test_values_that_are_not_plain_data_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match="a variable is not plain data"):
        ChatTemplate("{{ value }}").render(CHAT, {"value": value})


def test_a_process_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("", "/nowhere/python"):
        monkeypatch.setattr("sys.executable", executable)
        with pytest.raises(UserError, match="child process"):
            ChatTemplate("x").render(CHAT, {})


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_both_processes_can_render() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    assert template.render(CHAT, {}) == "hi"
    pid = os.fork()
    if pid == 0:
        works = template.render(CHAT, {}) == "hi"
        os._exit(0 if works else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert template.render(CHAT, {}) == "hi"


def test_a_loaded_tokenizer_renders_a_template_that_is_set_later(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, byte_level(), chat_template="{{ messages[0].content }}")
    assert tokenizer.render_chat(CHAT) == "hi"
    tokenizer.chat_template = "{{ messages|length }}"
    assert tokenizer.render_chat(CHAT) == "1"
    mapped: list[Mapping[str, Any]] = [OrderedDict(role="user", content="x")]
    assert tokenizer.render_chat(mapped) == "1"


def test_a_template_without_errors_is_parsed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsing imports jinja2, a tenth of the time that loading a model takes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hash_cache, "SETTLED", -60.0)
    path = tmp_path / "chat_template.jinja"
    path.write_text("{{ messages }}")
    parsed: list[str] = []
    original = worker.environment
    monkeypatch.setattr(worker, "environment", lambda: parsed.append("") or original())
    for _ in range(3):
        check_syntax(tmp_path)
    assert len(parsed) == 1
    path.write_text("{{ messages ")
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be compiled: line 1"):
            check_syntax(tmp_path)
    assert len(parsed) == 3
