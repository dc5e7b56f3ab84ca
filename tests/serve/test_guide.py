"""SERVER.md against the code: its options, fields, endpoints, metrics and limits, and its examples run."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

import edgellama.serve
from edgellama.__main__ import parser
from edgellama.grammar_errors import FORMATS, KEYWORDS
from edgellama.model import LlamaForCausalLM
from edgellama.serve import command, connection
from edgellama.serve.app import Service
from edgellama.serve.bodies import BODIES, LARGE_BODY, MAX_BODY
from edgellama.serve.event_stream import HOLD_SECONDS
from edgellama.serve.fields.messages import TEMPLATE_ARGUMENTS
from edgellama.serve.fields.tokenization import MAX_TOKENIZED
from edgellama.serve.fields.tools import MAX_TOOLS, ToolDefinition
from edgellama.serve.preprocess import COMPLETION_TOKENS, MIN_TEMPERATURE, SAMPLING_DEFAULTS
from edgellama.serve.request import HINTS, MAX_CHOICES, MAX_STOP_STRINGS, ChatRequest, CompletionRequest
from edgellama.serve.scheduler import CHUNK
from edgellama.tools.choose import SYNTAXES
from support.serving import serving, with_template

GUIDE = (Path(edgellama.serve.__path__[0]) / "SERVER.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(with_template(tiny_artifact, tmp_path_factory.mktemp("served") / "tiny"))


def table(title: str) -> list[list[str]]:
    """The cells of the first table under the heading."""
    section = re.split(r"^## ", GUIDE, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(title + "\n")]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)


def code_words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def options() -> list[argparse.Action]:
    commands = parser(["serve"])._subparsers
    serve = commands._group_actions[0].choices["serve"]  # type: ignore[union-attr,index,call-overload]
    return [action for action in serve._actions if action.option_strings and action.dest != "help"]


def test_options_are_those_of_the_command() -> None:
    documented = {code_words(row[0])[0]: row[1].strip("`") for row in table("Start")}
    assert set(documented) == {action.option_strings[-1] for action in options()}
    for action in options():
        if action.default not in (None, False, []):
            assert documented[action.option_strings[-1]] == str(action.default)
    (sampling,) = [action for action in options() if action.dest == "sampling_defaults"]
    assert sampling.choices == SAMPLING_DEFAULTS
    assert documented["--api-key"] == f"${command.KEY_VARIABLE}"


def test_fields_are_those_of_the_requests() -> None:
    documented = {name for row in table("Fields of a request") for name in code_words(row[0])}
    assert documented == {*ChatRequest.model_fields, *CompletionRequest.model_fields}
    for row in table("Fields of a request"):
        for name in code_words(row[0]):
            only = {"chat only": ChatRequest, "completions only": CompletionRequest}
            both = name in ChatRequest.model_fields and name in CompletionRequest.model_fields
            stated = [kind for text, kind in only.items() if row[2].startswith(text)]
            assert both != bool(stated), name
            assert all(name in kind.model_fields for kind in stated), name


def test_endpoints_are_those_of_the_application(model: LlamaForCausalLM) -> None:
    documented = {(code_words(row[0])[0], row[1]) for row in table("Endpoints")}
    routes = [route for route in Service(model, queue=1).app.routes if isinstance(route, Route)]
    served = {(route.path.replace(":path", ""), *(set(route.methods or ()) - {"HEAD"})) for route in routes}
    assert documented == served


def test_only_the_public_endpoints_answer_without_the_key(model: LlamaForCausalLM) -> None:
    httpx = pytest.importorskip("httpx")
    with serving(model, api_key="sesame") as (_, address):
        for row in table("Endpoints"):
            path = code_words(row[0])[0].replace("{name}", "tiny")
            status = httpx.request(row[1], address + path).status_code
            assert (status == 401) == (row[2] == "yes"), path


def test_syntaxes_of_tools_are_those_of_the_code() -> None:
    documented = [code_words(row[0])[0] for row in table("Tools")]
    assert sorted(documented) == sorted(syntax.name for syntax in SYNTAXES)


def test_metrics_are_those_of_the_server(model: LlamaForCausalLM) -> None:
    documented = {(code_words(row[0])[0], row[1]) for row in table("Metrics")}
    text = Service(model, queue=1).metrics.text().decode()
    shown = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, flags=re.MULTILINE))
    shown = {name: kind for name, kind in shown.items() if not name.endswith("_created")}
    assert documented == set(shown.items())


def test_numbers_are_those_of_the_code() -> None:
    fields = {name: row for row in table("Fields of a request") for name in code_words(row[0])}
    assert fields["n"][1] == f"1 to {MAX_CHOICES}"
    assert fields["tools"][1] == f"up to {MAX_TOOLS} functions"
    assert f"up to {MAX_STOP_STRINGS} texts" in fields["stop"][1]
    assert f"default {COMPLETION_TOKENS} for completions" in fields["max_tokens"][2]
    assert f"below {MIN_TEMPERATURE:.4f}" in fields["temperature"][2]
    assert f"{MAX_BODY:,} bytes" in GUIDE and f"within {HOLD_SECONDS} seconds" in GUIDE
    assert f"at most {connection.MAX_HEADERS:,} bytes" in GUIDE and f"above {LARGE_BODY:,} bytes" in GUIDE
    assert f"{BODIES * MAX_BODY:,} bytes together" in GUIDE and f"| `{command.CONNECTIONS}`, or less" in GUIDE
    for name in (*KEYWORDS.split(", "), *FORMATS.split(", ")):
        assert f"`{name}`" in GUIDE, name
    assert f"{MAX_TOKENIZED:,} characters" in GUIDE
    hints = next(row for row in table("Fields of a request") if f"`{HINTS[0]}`" in row[0])
    assert set(code_words(hints[0])) == set(HINTS) <= set(ChatRequest.model_fields)
    assert all(f"`{name}`" in fields["chat_template_kwargs"][2] for name in TEMPLATE_ARGUMENTS if name != "self")
    assert f"two chunks of {CHUNK} prompt tokens" in GUIDE


def test_the_examples_run(model: LlamaForCausalLM, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(model) as (service, address):
        example, tools = blocks("python")
        namespace: dict[str, Any] = {}
        exec(tools, namespace)
        assert ToolDefinition.model_validate(namespace["tools"][0]).as_tool().name == "weather"
        exec(example.replace("http://127.0.0.1:8000", address), namespace)
        assert namespace["model"] == service.name and capsys.readouterr().out
        (curl,) = [block for block in blocks("shell") if block.startswith("curl")]
        if shutil.which("curl"):
            shell = curl.replace("http://127.0.0.1:8000", address)
            assert service.name in subprocess.run(["bash", "-c", shell], capture_output=True, text=True).stdout
