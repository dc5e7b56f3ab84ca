"""Thoughts of a model whose template thinks in tags, over HTTP, with and without tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellama.errors import UserError
from support.scripted_model import ScriptedModel
from support.serving import client, serving
from support.tool_templates import TEMPLATES

CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
TOOLS: list[Any] = [{"type": "function", "function": {"name": "now"}}]
USER: list[Any] = [{"role": "user", "content": "Time?"}]
# Earlier thoughts are written, and a thought is begun if the request says so.
TEMPLATE = (
    TEMPLATES["hermes"]
    .replace(
        "{{ m.content }}",
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}",
    )
    .replace("<|start|>assistant\n", "<|start|>assistant\n{% if begin_thoughts %}<think>\n{% endif %}")
)


@pytest.fixture(scope="module", params=[[], ["<think>", "</think>"]], ids=["text", "special tokens"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, str]]:
    scripted = ScriptedModel(tmp_path_factory.mktemp("thinking"), TEMPLATE, special=request.param)
    with serving(scripted.model) as (service, address):
        yield scripted, client(address), service.name


def answer(served: tuple[Any, Any, str], text: str, **asked: Any) -> tuple[Any, Any, list[str], str]:
    """(thoughts, content, names of calls, finish reason), whole and streamed."""
    scripted, api, name = served
    variables = asked.get("extra_body", {}).get("chat_template_kwargs", {})
    body = {"messages": USER, "tools": asked.get("tools", []), "chat_template_kwargs": variables}
    scripted.write(text, api.post("/../tokenize", cast_to=dict[str, Any], body=body)["count"])
    asked = {"model": name, "messages": USER, "temperature": 0, "max_tokens": 200, **asked}
    choice = api.chat.completions.create(**asked).choices[0]
    message = choice.message
    calls = [call.function.name for call in message.tool_calls or []]
    thoughts, content = "", ""
    for chunk in api.chat.completions.create(stream=True, **asked):
        delta = chunk.choices[0].delta
        thoughts, content = thoughts + (getattr(delta, "reasoning_content", "") or ""), content + (delta.content or "")
    assert (thoughts, content) == (getattr(message, "reasoning_content", ""), message.content or "")
    return thoughts, content, calls, choice.finish_reason


BEGUN = {"extra_body": {"chat_template_kwargs": {"begin_thoughts": True}}}


def test_thoughts_are_no_content(served: tuple[Any, Any, str]) -> None:
    assert answer(served, "<think>\nhm\n</think>\n\nNoon.") == ("hm", "Noon.", [], "stop")
    assert answer(served, "Noon.") == ("", "Noon.", [], "stop")
    assert answer(served, "hm\n</think>Noon.", **BEGUN) == ("hm", "Noon.", [], "stop")


def test_thoughts_before_calls(served: tuple[Any, Any, str]) -> None:
    thought = "<think>I may call <tool_call>.</think>"
    for choice in ("auto", "required"):
        found = answer(served, thought + CALL, tools=TOOLS, tool_choice=choice)
        assert found == ("I may call <tool_call>.", "", ["now"], "tool_calls")
        found = answer(served, "hm</think>" + CALL, tools=TOOLS, tool_choice=choice, **BEGUN)
        assert found == ("hm", "", ["now"], "tool_calls")
    assert answer(served, thought + "No.", tools=TOOLS)[:3] == ("I may call <tool_call>.", "No.", [])
    thoughts, content, calls, _ = answer(served, "<think>hm</think>No.", tools=TOOLS, tool_choice="required")
    assert (thoughts, content, calls) == ("hm", "", ["now"])


def test_thoughts_go_back_into_the_prompt(served: tuple[Any, Any, str]) -> None:
    scripted, api, _ = served
    messages = [*USER, {"role": "assistant", "content": "Noon.", "reasoning_content": "hm"}, *USER]
    ids = api.post("/../tokenize", cast_to=dict[str, Any], body={"messages": messages})["tokens"]
    text = scripted.model.tokenizer.decode(ids, skip_special_tokens=False)
    assert "<|start|>assistant\n<think>hm</think>Noon.</s>" in text


def test_a_chat_template_from_a_file(tmp_path: Path) -> None:
    scripted = ScriptedModel(tmp_path / "model", "{{ messages[0].content }}")
    tokenizer = scripted.model.tokenizer
    file = tmp_path / "tools.jinja"
    file.write_text(TEMPLATES["hermes"])
    tokenizer.use_chat_template(file)
    assert tokenizer.render_chat(USER, tools=TOOLS).startswith('<|start|>system\n[{"type": "function"')
    file.write_text("{% if %}")
    with pytest.raises(UserError, match="the chat template cannot be compiled"):
        tokenizer.use_chat_template(file)
    with pytest.raises(UserError, match="cannot be read"):
        tokenizer.use_chat_template(tmp_path / "none.jinja")


def test_syntaxes_that_the_template_does_not_tell(tmp_path: Path) -> None:
    scripted = ScriptedModel(tmp_path / "model", TEMPLATES["hermes"].replace("tool_call>", "call>"))
    for parser, message in ((None, "does not know how the model's chat template writes calls"), ("hermes", "")):
        with serving(scripted.model, tool_parser=parser) as (service, address):
            api = client(address)
            body = {"messages": USER, "tools": TOOLS}
            scripted.write(CALL, api.post("/../tokenize", cast_to=dict[str, Any], body=body)["count"])
            asked: dict[str, Any] = {"model": service.name, "temperature": 0, **body}
            if message:
                with pytest.raises(Exception, match=message):
                    api.chat.completions.create(**asked)
            else:
                assert api.chat.completions.create(**asked).choices[0].finish_reason == "tool_calls"
