"""Tool calls of every syntax over HTTP, with OpenAI's client and a model whose logits are a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jsonschema
import openai
import pytest

from edgellama.tools.choose import SYNTAXES, syntax_of
from support.scripted_model import ScriptedModel
from support.serving import client, serving
from support.tool_templates import TEMPLATES

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer"},
    },
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
SCHEMAS = {"weather": CITY, "now": {"type": "object", "maxProperties": 0}}
USER: list[Any] = [{"role": "user", "content": "Weather?"}]
WEATHER, NOW = ("weather", {"city": "Rome", "days": 3}), ("now", {})
LEADING = ("llama-json", "pythonic")  # the whole answer is calls, or text
SPECIAL = {
    "granite": ["<|tool_call|>"],
    "mistral": ["[TOOL_CALLS]"],
    "mistral-args": ["[TOOL_CALLS]", "[ARGS]"],
    "llama-json": ["<|python_tag|>"],
    "smollm": ["<tool_call>", "</tool_call>"],
}
ADDED = {"hermes": ["<tool_call>", "</tool_call>"]}  # Qwen's are no special tokens

Call = tuple[str, dict[str, Any]]


def written(syntax: str, *calls: Call) -> str:
    """The calls as a model writes them."""
    key = "parameters" if syntax == "llama-json" else "arguments"
    objects = [json.dumps({"name": name, key: arguments}, ensure_ascii=False) for name, arguments in calls]
    python = [f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls]
    return {
        "hermes": "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects),
        "smollm": f"<tool_call>[{', '.join(objects)}]</tool_call>",
        "granite": f"<|tool_call|>[{', '.join(objects)}]",
        "mistral": f"[TOOL_CALLS][{', '.join(objects)}]",
        "mistral-args": "".join(
            f"[TOOL_CALLS]{name}[ARGS]{json.dumps(given, ensure_ascii=False)}" for name, given in calls
        ),
        "llama-json": "; ".join(objects),
        "pythonic": f"[{', '.join(python)}]",
    }[syntax]


class Answer(NamedTuple):
    """The parts of an answer."""

    content: str
    calls: list[Call]
    reason: str | None


class Served:
    """A scripted model behind an endpoint."""

    def __init__(self, syntax: str, scripted: ScriptedModel, address: str, name: str) -> None:
        self.syntax, self.scripted, self.name = syntax, scripted, name
        self.api = client(address)

    def ask(self, text: str, *, end: bool = True, **asked: Any) -> Answer:
        """The answer of a model that wants to write `text`, streamed and whole, which must be the same."""
        body = {"model": self.name, "messages": USER, "tools": TOOLS, "temperature": 0, "max_tokens": 300, **asked}
        tools = [] if body.get("tool_choice") == "none" else body["tools"]
        self.scripted.write(text, len(self.prompt(body["messages"], tools)), end=end)
        done = self.api.chat.completions.create(**body).choices[0]
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in done.message.tool_calls or []]
        whole = Answer(done.message.content or "", calls, done.finish_reason)
        assert all(len(call.id) == 9 for call in done.message.tool_calls or [])
        assert self._streamed(body) == whole
        return whole

    def prompt(self, messages: list[Any], tools: list[Any]) -> list[int]:
        """The token ids of the prompt, from the server."""
        body = {"messages": messages, "tools": tools}
        return self.api.post("/../tokenize", cast_to=dict[str, Any], body=body)["tokens"]

    def _streamed(self, body: dict[str, Any]) -> Answer:
        content, reason, found = "", None, list[tuple[str, str]]()
        for chunk in self.api.chat.completions.create(stream=True, **body):
            (choice,) = chunk.choices
            content, reason = content + (choice.delta.content or ""), choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                if call.index == len(found):
                    assert call.id and call.function.name and call.type == "function"
                    found.append((call.function.name, ""))
                name, arguments = found[call.index]
                found[call.index] = name, arguments + (call.function.arguments or "")
        return Answer(content, [(name, json.loads(arguments)) for name, arguments in found], reason)


@pytest.fixture(scope="module", params=[syntax.name for syntax in SYNTAXES])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    syntax = request.param
    folder = tmp_path_factory.mktemp(syntax)
    scripted = ScriptedModel(folder, TEMPLATES[syntax], SPECIAL.get(syntax, ()), ADDED.get(syntax, ()))
    with serving(scripted.model) as (service, address):
        yield Served(syntax, scripted, address, service.name)


def test_the_syntax_is_that_of_the_template() -> None:
    assert set(TEMPLATES) == {syntax.name for syntax in SYNTAXES}
    for name, template in TEMPLATES.items():
        found = syntax_of(template)
        assert found is not None and found.name == name


def test_one_call(served: Served) -> None:
    assert served.ask(written(served.syntax, WEATHER)) == Answer("", [WEATHER], "tool_calls")


def test_several_calls(served: Served) -> None:
    calls = [WEATHER, NOW, ("weather", {"city": 'a "quoted" \\ {name} ] é 🙂', "unit": "F"})]
    assert served.ask(written(served.syntax, *calls)) == Answer("", calls, "tool_calls")


def test_text_without_calls(served: Served) -> None:
    for text in ("Sunny, 20 degrees.", '  {"city": [1, 2]} <tool', "[1](x) weather(", "{", ""):
        assert served.ask(text) == Answer(text, [], "stop")


def test_text_before_a_call(served: Served) -> None:
    text = f"Let me look.\n\n{written(served.syntax, WEATHER)}"
    if served.syntax in LEADING:
        assert served.ask(text) == Answer(text, [], "stop")
    else:
        assert served.ask(text) == Answer("Let me look.", [WEATHER], "tool_calls")


def test_an_unknown_function_cannot_be_called(served: Served) -> None:
    wrong = written(served.syntax, ("whether", {"city": "Rome", "days": 3}))
    answer = served.ask(wrong)
    if served.syntax == "pythonic":  # an answer that does not begin with the name of a function is text
        assert answer == Answer(wrong, [], "stop")
    else:
        assert answer.reason == "tool_calls" and [name for name, _ in answer.calls] == ["weather"]
        jsonschema.validate(answer.calls[0][1], CITY)


@pytest.mark.parametrize("given", [{"town": "Rome"}, {"city": 5}, {"city": "Rome", "unit": "K"}, {}, {"days": "3"}])
def test_arguments_fit_the_schema(served: Served, given: dict[str, Any]) -> None:
    answer = served.ask(written(served.syntax, ("weather", given)))
    assert answer.reason == "tool_calls" and answer.calls
    for name, arguments in answer.calls:
        jsonschema.validate(arguments, SCHEMAS[name])


def test_a_required_call_is_made_whatever_the_model_wants(served: Served) -> None:
    answer = served.ask("I would rather not.", tool_choice="required")
    assert answer.reason == "tool_calls" and answer.content == "" and answer.calls
    for name, arguments in answer.calls:
        jsonschema.validate(arguments, SCHEMAS[name])
    wanted = written(served.syntax, NOW, WEATHER)
    assert served.ask(wanted, tool_choice="required") == Answer("", [NOW, WEATHER], "tool_calls")


def test_a_named_function_is_called_once(served: Served) -> None:
    named = {"type": "function", "function": {"name": "now"}}
    for text in ("No.", written(served.syntax, WEATHER), written(served.syntax, NOW, NOW)):
        assert served.ask(text, tool_choice=named) == Answer("", [NOW], "tool_calls")


def test_no_parallel_calls(served: Served) -> None:
    two = written(served.syntax, WEATHER, NOW)
    for choice in ("auto", "required"):
        answer = served.ask(two, parallel_tool_calls=False, tool_choice=choice)
        assert answer.calls == [WEATHER] and answer.reason == "tool_calls"


def test_without_tool_choice_the_text_is_the_answer(served: Served) -> None:
    text = written(served.syntax, WEATHER)
    special = any(marker in text for marker in SPECIAL.get(served.syntax, ()))
    answer = served.ask(text, tool_choice="none")
    assert not answer.calls and answer.reason == "stop" and (answer.content == text) == (not special)


def test_a_limit_within_the_arguments_ends_with_length(served: Served) -> None:
    text = written(served.syntax, WEATHER)
    tokens = len(served.scripted.model.tokenizer.encode(text.partition("Rome")[0] + "Ro", add_special_tokens=False))
    served.scripted.write(text, len(served.prompt(USER, TOOLS)))
    asked: dict[str, Any] = {"model": served.name, "messages": USER, "tools": TOOLS, "temperature": 0}
    done = served.api.chat.completions.create(max_tokens=tokens, **asked).choices[0]
    assert done.finish_reason == "length"
    if served.syntax == "pythonic":  # a call is sent when it is complete
        assert done.message.content == text.partition("Rome")[0] + "Ro" and not done.message.tool_calls
    else:
        assert done.message.tool_calls and done.message.tool_calls[0].function.name == "weather"
        assert done.message.tool_calls[0].function.arguments == '{"city": "Ro'


def test_calls_and_results_go_back_into_the_prompt(served: Served) -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "sunny"},
    ]
    assert served.ask("It is sunny.", messages=messages) == Answer("It is sunny.", [], "stop")
    prompt = served.prompt(messages, TOOLS)
    text = served.scripted.model.tokenizer.decode(prompt, skip_special_tokens=False)
    expected = written(served.syntax, ("weather", {"city": "Rome"}))
    if served.syntax != "pythonic":  # its template leaves the arguments out
        assert expected in text
    assert "<|start|>tool\nsunny" in text and '"name": "weather"' in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "a function that tools does not have"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice needs tools"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "two functions with the name 'weather'"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "the parameters of 'f' are no schema of an object",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"required": [{}]}}}]},
            "the parameters of 'f' are no schema of an object",
        ),
        (
            {
                "tools": [
                    TOOLS[1],
                    {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}},
                ]
            },
            "tools: the parameters of 'f'",
        ),
        ({"tools": TOOLS * 65}, "tools has 130 entries"),
        ({"response_format": {"type": "json_object"}}, "response_format does not go with tools"),
        ({"extra_body": {"ignore_eos": True}}, "tools needs an eos token"),
        (
            {
                "messages": [
                    *USER,
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "["}}],
                    },
                ]
            },
            "the arguments of a call of 'f' in messages are no JSON object",
        ),
    ],
)
def test_requests_that_are_refused(served: Served, wrong: dict[str, Any], message: str) -> None:
    if served.syntax == "pythonic" and "parameters of 'f'" in message and "not" in str(wrong):
        pytest.skip("its grammar reads types and enumerations only")
    with pytest.raises(openai.BadRequestError, match=message):
        served.api.chat.completions.create(**{"model": served.name, "messages": USER, "tools": TOOLS, **wrong})
