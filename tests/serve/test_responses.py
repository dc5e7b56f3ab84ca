"""/v1/responses with OpenAI's client: text, thoughts, tools, conversations, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from support.scripted_model import ScriptedModel
from support.serving import client, serving
from support.tool_templates import TEMPLATES

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [{"type": "function", "name": "weather", "parameters": CITY, "strict": True}]
TEMPLATE = TEMPLATES["hermes"].replace(
    "{{ m.content }}", "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ScriptedModel, openai.OpenAI, str]]:
    scripted = ScriptedModel(tmp_path_factory.mktemp("responses"), TEMPLATE)
    with serving(scripted.model) as (service, address):
        yield scripted, client(address), service.name


class Asking:
    """Asks for the answer that the model is told to write."""

    def __init__(self, served: tuple[ScriptedModel, openai.OpenAI, str]) -> None:
        self.scripted, self.api, self.name = served

    def prompt(self, messages: list[Any], tools: list[Any]) -> list[int]:
        """The token ids of the same chat, from /tokenize."""
        functions = [{"type": "function", "function": {k: v for k, v in t.items() if k != "type"}} for t in tools]
        body = {"messages": messages, "tools": functions}
        return self.api.post("/../tokenize", cast_to=dict[str, Any], body=body)["tokens"]

    def __call__(self, wanted: str, messages: list[Any], **asked: Any) -> Any:
        """The response; its stream must end with the same. messages: the same conversation as a chat."""
        prompt = self.prompt(messages, asked.get("tools", []))
        self.scripted.write(wanted, len(prompt))
        asked = {"model": self.name, "temperature": 0, "max_output_tokens": 200, **asked}
        response = self.api.responses.create(**asked)
        assert response.usage is not None and response.usage.input_tokens == len(prompt)
        with self.api.responses.stream(**asked) as stream:
            events = list(stream)
            last = stream.get_final_response() if events[-1].type == "response.completed" else events[-1].response
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
        assert plain(last) == plain(response)
        self.events = events
        return response

    def joined(self, kind: str) -> str:
        """The deltas of a kind of event, joined."""
        return "".join(event.delta for event in self.events if event.type == f"response.{kind}.delta")


def plain(response: Any) -> list[Any]:
    """The output without ids."""
    shown = []
    for item in response.output:
        texts = [part.text for part in getattr(item, "content", None) or []]
        shown.append((item.type, item.status, texts, getattr(item, "name", ""), getattr(item, "arguments", "")))
    return [response.status, shown]


@pytest.fixture
def ask(served: tuple[ScriptedModel, openai.OpenAI, str]) -> Asking:
    return Asking(served)


def test_text(ask: Asking) -> None:
    user = {"role": "user", "content": "Hi"}
    response = ask("Good morning 🙂", [user], input="Hi")
    assert response.output_text == "Good morning 🙂" == ask.joined("output_text") and response.status == "completed"
    assert response.model == ask.name and response.output[0].type == "message"
    again = ask("Yes.", [{"role": "system", "content": "Be brief."}, user], input=[user], instructions="Be brief.")
    assert again.output_text == "Yes." and again.instructions == "Be brief."
    assert ask("Yes.", [user], input=[{**user, "type": None}]).output_text == "Yes."
    empty = ask("", [user], input="Hi")
    assert empty.output_text == "" and len(empty.output) == 1


def test_a_limit_makes_the_response_incomplete(ask: Asking) -> None:
    response = ask("Good morning", [{"role": "user", "content": "Hi"}], input="Hi", max_output_tokens=4)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text == "Good" and response.output[0].status == "incomplete"
    assert response.usage.output_tokens == 4 and ask.events[-1].type == "response.incomplete"


def test_thoughts_and_calls(ask: Asking) -> None:
    user = {"role": "user", "content": "Weather?"}
    response = ask(f"<think>hm</think>Let me see. {CALL}", [user], input="Weather?", tools=TOOLS)
    thoughts, message, call = response.output
    assert (thoughts.type, message.type, call.type) == ("reasoning", "message", "function_call")
    assert thoughts.content[0].text == "hm" == ask.joined("reasoning_text")
    assert response.output_text == "Let me see." == ask.joined("output_text")
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Rome"})
    assert ask.joined("function_call_arguments") == call.arguments
    tokens = ask.scripted.model.tokenizer.encode("hm", add_special_tokens=False)
    assert response.usage.output_tokens_details.reasoning_tokens == len(tokens)
    # the output goes back as input, with the result of the call
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items = [user, *(item.model_dump() for item in response.output), result]
    function = {"name": "weather", "arguments": call.arguments}
    assistant = {"role": "assistant", "content": "Let me see.", "reasoning_content": "hm"}
    assistant["tool_calls"] = [{"id": call.call_id, "type": "function", "function": function}]
    chat = [user, assistant, {"role": "tool", "tool_call_id": call.call_id, "content": "sunny"}]
    assert ask("Sunny.", chat, input=items, tools=TOOLS).output_text == "Sunny."


def test_calls_are_constrained(ask: Asking) -> None:
    user = [{"role": "user", "content": "Weather?"}]
    for choice in ("required", {"type": "function", "name": "weather"}):
        wrong = CALL.replace('"Rome"', "5")
        response = ask(wrong, user, input="Weather?", tools=TOOLS, tool_choice=choice)
        (call,) = response.output
        assert call.type == "function_call"
        jsonschema.validate(json.loads(call.arguments), CITY)
    two = ask(CALL + CALL, user, input="Weather?", tools=TOOLS)
    assert [item.type for item in two.output] == ["function_call"] * 2
    assert two.output[0].call_id != two.output[1].call_id


def test_structured_output(ask: Asking) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "it", "schema": CITY, "strict": True}}
    response = ask("no json", [{"role": "user", "content": "Where?"}], input="Where?", text=form)
    jsonschema.validate(json.loads(response.output_text), CITY)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported: this server stores no responses"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input has no message"),
        ({"input": [{"type": "image_generation_call", "id": "a"}]}, "must be a message, a function_call"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "the part has the type 'input_image', and this model reads text only",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice needs tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "schema goes with type"),
        ({"input": [{"role": "user", "content": "x"}] * 1024}, "the prompt has 1,024 messages"),
        ({"background": True}, "background is not supported"),
        ({"background": 0}, "background"),
    ],
)
def test_requests_that_are_refused(ask: Asking, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask.api.responses.create(**{"model": ask.name, "input": "x", **wrong})
    with pytest.raises(openai.NotFoundError):
        ask.api.responses.create(model="other", input="x")
