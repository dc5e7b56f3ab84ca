"""Python functions as tools: schemas as transformers makes them, and calls as objects, with a scripted model."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
from transformers.utils import get_json_schema

from edgellama.errors import UserError
from edgellama.examples.tool_calls import answer, multiply, time_now
from edgellama.tools.functions import function_schema
from support.scripted_model import ScriptedModel
from support.tool_templates import TEMPLATES


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> dict[str, Any]:
    """Tell the weather of a city.

    It knows the next days only.

    Args:
        city: The city, for example Rome: a name
            that may go on in the next line.
        days (int): How many days.
        unit: The unit of the temperatures.

    Returns:
        The weather.
    """
    return {"city": city, "days": days, "unit": unit}


def many(
    numbers: list[float],
    table: dict[str, int],
    pair: tuple[int, str],
    colour: Colour,
    either: int | str,
    maybe: Optional[bool],  # noqa: UP045 - written so in many programs
    nested: list[dict[str, list[int]]],
    parts: list[int] | dict[str, int],
    anything: Any,
    plain: list,
    drink: str = "tea",
) -> None:
    """Take arguments of many types.

    Args:
        numbers: Numbers.
        table: A table.
        pair: A pair.
        colour: A colour.
        either: One or the other.
        maybe: Perhaps.
        nested: Nested.
        parts: Parts.
        anything: Anything.
        plain: A list.
        drink: What to drink (choices: ["tea", "coffee"])
    """


class Shop:
    def order(self, item: str) -> str:
        """Order something.

        Args:
            item: What.
        """
        return f"ordered {item}"


@pytest.mark.parametrize("function", [weather, many, multiply, time_now, Shop().order, Shop.order])
def test_a_schema_is_that_of_transformers(function: Callable[..., Any]) -> None:
    expected = get_json_schema(function)
    expected["function"].pop("return", None)
    assert function_schema(function) == expected


def no_docstring(a: int) -> None: ...


def no_hint(a) -> None:  # type: ignore[no-untyped-def]
    """Do something."""


def no_description(a: int) -> None:
    """Do something."""


def strange(a: Path) -> None:
    """Do something.

    Args:
        a: What.
    """


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (no_docstring, "no_docstring has no docstring"),
        (no_hint, "a of the tool no_hint has no type hint"),
        (no_description, "no_description does not describe a. Add a section"),
        (strange, r"Path'> of a of the tool strange has no JSON schema. Use int"),
        (3, "tools holds 3; needed: Python functions"),
        ({"type": "function"}, "needed: .*function"),
    ],
)
def test_a_tool_that_cannot_be_described_says_why(tool: Any, message: str, tmp_path: Path) -> None:
    model = ScriptedModel(tmp_path, TEMPLATES["hermes"]).model
    with pytest.raises(UserError, match=message):
        model.stream_chat("hi", tools=[tool])


WRITTEN = {
    "hermes": 'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Köln", "days": 2}}]',
    "smollm": '<tool_call>[{"name": "weather", "arguments": {"city": "Köln", "days": 2}}]</tool_call>',
    "pythonic": "[weather(city='Köln', days=2)]",
}
SPECIAL = {"mistral": ["[TOOL_CALLS]"], "smollm": ["<tool_call>", "</tool_call>"]}


def scripted(folder: Path, syntax: str) -> ScriptedModel:
    return ScriptedModel(folder, TEMPLATES[syntax], special=SPECIAL.get(syntax, ()))


def say(model: ScriptedModel, text: str, messages: Any, tools: Any, end: bool = True) -> None:
    described = [function_schema(tool) for tool in tools]
    prompt = model.model.turn(messages, described).ids
    model.write(text, len(prompt), end=end)


@pytest.mark.parametrize("syntax", WRITTEN)
def test_calls_are_objects_that_run(syntax: str, tmp_path: Path) -> None:
    model = scripted(tmp_path, syntax)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Weather?"}]
    say(model, WRITTEN[syntax], messages, [weather])
    reply = model.model.chat(messages, tools=[weather])
    assert reply.content == ("Let me look." if syntax == "hermes" else "")
    (call,) = reply.tool_calls
    assert (call.name, call.arguments, call.function) == ("weather", {"city": "Köln", "days": 2}, weather)
    result = call.run()
    assert result == {"city": "Köln", "days": 2, "unit": "C"}
    assert call.message(result) == {
        **{"role": "tool", "tool_call_id": call.id, "name": "weather"},
        "content": '{"city": "Köln", "days": 2, "unit": "C"}',
    }
    (written,) = reply.message["tool_calls"]
    assert written["function"] == {"name": "weather", "arguments": {"city": "Köln", "days": 2}}
    messages += [reply.message, call.message("sunny")]
    say(model, "It is sunny.", messages, [weather])
    final = model.model.chat(messages, tools=[weather])
    assert (final.content, final.tool_calls) == ("It is sunny.", ())
    assert final.message == {"role": "assistant", "content": "It is sunny."}


def test_a_stream_hides_the_call_and_its_last_piece_has_it(tmp_path: Path) -> None:
    model = scripted(tmp_path, "hermes")
    say(model, WRITTEN["hermes"] + "\n" + WRITTEN["hermes"][13:], [{"role": "user", "content": "hi"}], [weather])
    pieces = list(model.model.stream_chat("hi", tools=[weather]))
    assert "".join(piece.text for piece in pieces).strip() == "Let me look."
    assert [len(piece.tool_calls) for piece in pieces] == [0] * (len(pieces) - 1) + [2]
    assert len({call.id for call in pieces[-1].tool_calls}) == 2


def test_a_call_that_is_cut_has_no_arguments(tmp_path: Path) -> None:
    model = scripted(tmp_path, "hermes")
    say(model, WRITTEN["hermes"], [{"role": "user", "content": "hi"}], [weather])
    ids = model.model.tokenizer.encode(WRITTEN["hermes"].split("Köln")[0])
    (call,) = model.model.chat("hi", tools=[weather], max_new_tokens=len(ids)).tool_calls
    assert call.arguments is None
    with pytest.raises(UserError, match=r"the arguments of weather end too early.*Raise max_new_tokens"):
        call.run()


def test_schemas_are_tools_too_and_a_template_without_tools_says_so(tmp_path: Path) -> None:
    model = scripted(tmp_path / "a", "hermes")
    say(model, WRITTEN["hermes"], [{"role": "user", "content": "hi"}], [weather])
    (call,) = model.model.chat("hi", tools=[function_schema(weather)]).tool_calls
    assert call.arguments == {"city": "Köln", "days": 2}
    with pytest.raises(UserError, match="'weather', which is no Python function here"):
        call.run()
    plain = ScriptedModel(tmp_path / "b", "{% for m in messages %}{{ m.content }}{% endfor %}").model
    with pytest.raises(UserError, match=r"chat template has no tools.*use_chat_template\(FILE\)"):
        plain.chat("hi", tools=[weather])


def test_the_example_runs_calls_until_there_is_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = scripted(tmp_path, "hermes")
    call = {"name": "multiply", "arguments": {"a": 17, "b": 23}}
    say(model, f"<tool_call>\n{json.dumps(call)}\n</tool_call>", [{"role": "user", "content": "17 * 23?"}], [multiply])
    chat, asked = model.model.chat, []

    def next_answer(messages: Any, **settings: Any) -> Any:
        asked.append(len(messages))
        if len(messages) == 3:
            say(model, "It is 391.", messages, [multiply])
        return chat(messages, **settings)

    model.model.chat = next_answer  # type: ignore[method-assign]
    messages = answer(model.model, "17 * 23?", [multiply])
    assert asked == [1, 3] and messages[2]["content"] == "391" and messages[3]["content"] == "It is 391."
    assert "multiply(" in capsys.readouterr().out
