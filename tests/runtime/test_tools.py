"""Tool calls: reading answers that arrive in any pieces, the choice of a syntax, and thoughts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import UserError
from edgellama.tools.choose import SYNTAXES, answer_grammar, answer_reader, has_tools, syntax_named, syntax_of, thinks
from edgellama.tools.pythonic import parsed_call
from edgellama.tools.syntax import AnswerReader, Tool, ToolChoice
from support.tool_templates import TEMPLATES

TOOLS = [Tool("f"), Tool("g_2")]
NAMES = [syntax.name for syntax in SYNTAXES]
# Templates as published, shortened to the lines that tell their syntax.
PUBLISHED = {
    "Qwen2.5": (
        'json object with function name and arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name',
        "hermes",
    ),
    "Qwen3-Coder": ("{{- '<tool_call>\\n<function=' + tool_call.name + '>\\n' }}", None),
    "GLM-4.5": ("{{ '<tool_call>' + tc.name }}{{ '<arg_key>' + k + '</arg_key>' }}", None),
    "Llama-3.1": (
        'respond in the format {"name": function name, "parameters": dictionary of argument name',
        "llama-json",
    ),
    "Mistral-7B-v0.3": ('{{- "[TOOL_CALLS] [" }}{%- for tool_call in message.tool_calls %}', "mistral"),
    "Ministral-3": ('{{- "[TOOL_CALLS]" + name + "[ARGS]" + arguments }}', "mistral-args"),
    "granite-3.3": ("{%- set assistant_tool_call = '<|tool_call|>' %}", "granite"),
    "Llama-3.2-pythonic": (
        "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(",
        "pythonic",
    ),
    "SmolLM2": ('<tool_call>[\\n{"name": "func_name1", "arguments": {', "smollm"),
    "ChatML": ("{{'<|im_start|>' + message['role']}}", None),
}


def read(reader: AnswerReader | None, pieces: Sequence[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """(content, thoughts, calls) of an answer that arrives in pieces."""
    assert reader is not None
    content, thoughts, calls = "", "", list[tuple[str, str]]()
    for delta in [delta for piece in pieces for delta in reader.feed(piece)] + list(reader.end()):
        content, thoughts = content + delta.content, thoughts + delta.reasoning
        if delta.call == len(calls):
            assert delta.name
            calls.append((delta.name, ""))
        if delta.call is not None:
            assert delta.call == len(calls) - 1  # one after the other
            calls[-1] = calls[-1][0], calls[-1][1] + delta.arguments
    return content, thoughts, calls


def reader_of(name: str, **form: bool) -> AnswerReader | None:
    return answer_reader(syntax_named(name), ToolChoice(TOOLS), **{"thinking": False, "begun": False, **form})


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_templates(model: str) -> None:
    text, expected = PUBLISHED[model]
    found = syntax_of(text)
    assert (found and found.name) == expected


def test_templates_with_tools_use_the_variable() -> None:
    assert all(has_tools(template) for template in TEMPLATES.values())
    assert has_tools("{%- if tools is defined %}") and not has_tools("You have no tools. {{ message.tools_used }}")
    assert thinks("{{ '<think>' }}{{ '</think>' }}") and not thinks("{{ message }}")


FRAGMENTS = st.sampled_from(
    [
        *'{}[]"\\(),=;: \n',
        "<tool_call>",
        "</tool_call>",
        "<|tool_call|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<think>",
        "</think>",
        '{"name": "f"',
        '"arguments": {',
        '"parameters": {"a": 1}}',
        "f(",
        "g_2(a=1)",
        "[f(",
        "text",
        "é🙂",
        "<tool",
    ]
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(st.lists(FRAGMENTS, max_size=12), st.integers(1, 7), st.booleans(), st.booleans())
def test_pieces_do_not_matter(name: str, fragments: list[str], size: int, thinking: bool, begun: bool) -> None:
    text = "".join(fragments)
    form = {"thinking": thinking, "begun": begun}
    whole = read(reader_of(name, **form), [text])
    assert read(reader_of(name, **form), [text[at : at + size] for at in range(0, len(text), size)]) == whole
    if not any(mark in text for mark in ("<", "[", "{")):
        assert whole == (text, "", []) or thinking


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "hermes",
            'a <tool_call>{"arguments": {"x": [1, {}]}, "name": "f"}</tool_call> b',
            ("a b", [("f", '{"x": [1, {}]}')]),
        ),
        ("hermes", '<tool_call>{"name": "f"}', ("", [("f", "{}")])),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', ("", [("f", "{}")])),
        ("hermes", '<tool_call>{"name": 5}</tool_call>', ('{"name": 5}', [])),
        ("hermes", '<tool_call>{"na', ('<tool_call>{"na', [])),
        ("hermes", "1 < 2 <tool", ("1 < 2 <tool", [])),
        ("granite", '<|tool_call|>[{"name": "f", "arguments": {"s": "]}\\""}}]', ("", [("f", '{"s": "]}\\""}')])),
        ("mistral-args", "[TOOL_CALLS]f[CALL_ID]abc[ARGS]{}", ("", [("f", "{}")])),
        ("mistral-args", "[TOOL_CALLS]f", ("[TOOL_CALLS]f", [])),
        ("llama-json", '<|python_tag|>{"name": "f", "parameters": {}}', ("", [("f", "{}")])),
        ("llama-json", '{"type": "function", "name": "f", "parameters": {"a": 1}}', ("", [("f", '{"a": 1}')])),
        ("llama-json", '{"names": 1}', ('{"names": 1}', [])),
        (
            "pythonic",
            "[f(a=[1, 'x)'], b={'k': None}), g_2(c=True)]",
            ("", [("f", '{"a": [1, "x)"], "b": {"k": null}}'), ("g_2", '{"c": true}')]),
        ),
        ("pythonic", "[f(a=open('x'))]", ("[f(a=open('x'))]", [])),
        ("pythonic", "[f(1)]", ("[f(1)]", [])),
        ("pythonic", "[f(a=1)", ("", [("f", '{"a": 1}')])),
        ("pythonic", "[see](f)", ("[see](f)", [])),
    ],
)
def test_answers_that_no_grammar_has_shaped(name: str, text: str, expected: tuple[str, list[Any]]) -> None:
    content, _, calls = read(reader_of(name), [text])
    assert (content, calls) == expected


@pytest.mark.parametrize(
    ("begun", "text", "expected"),
    [
        (False, "<think>\nhm, 1 < 2\n</think>\n\nYes.", ("Yes.", "hm, 1 < 2")),
        (True, "hm\n</think>Yes.", ("Yes.", "hm")),
        (False, "Yes. <think>", ("Yes. <think>", "")),
        (False, "<think></think>Yes.", ("Yes.", "")),
        (True, "hm, no end </thin", ("", "hm, no end </thin")),
        (False, "<thi", ("<thi", "")),
    ],
)
def test_thoughts(begun: bool, text: str, expected: tuple[str, str]) -> None:
    for size in (1, 3, 100):
        reader = answer_reader(None, None, thinking=True, begun=begun)
        assert read(reader, [text[at : at + size] for at in range(0, len(text), size)]) == (*expected, [])
    with_call = text + '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    if expected[0] == "Yes.":
        content, thoughts, calls = read(reader_of("hermes", thinking=True, begun=begun), [with_call])
        assert (content, thoughts, calls) == (*expected, [("f", "{}")])


def test_arguments_that_are_no_literals() -> None:
    for text in (
        "f(**x)",
        "f(a=b)",
        "f(a=1+x)",
        "f",
        "f(a=1); g()",
        "f(a=" + "[" * 500 + "]" * 500 + ")",
        "f(a=1e999)",
    ):
        assert parsed_call(text) is None, text
    assert parsed_call("weather.get(city='Rome', days=-3)") == ("weather.get", '{"city": "Rome", "days": -3}')


def test_python_needs_names_of_python() -> None:
    for tool in (Tool("get-weather"), Tool("f", {"type": "object", "properties": {"a b": {}}}), Tool("class")):
        with pytest.raises(UserError, match="is no name in Python"):
            answer_grammar(syntax_named("pythonic"), ToolChoice([tool]), {}, thinking=False, begun=False)


def test_tools_for_templates() -> None:
    function = Tool("f", description="It.").as_dict()["function"]
    assert json.loads(json.dumps(function)) == {
        "name": "f",
        "description": "It.",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    }
