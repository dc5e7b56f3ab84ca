"""Other people's clients against the endpoint: LiteLLM, LangChain and lm-evaluation-harness.

They are large, so they are no part of the test environment: install tests/serve/clients.txt to run this file. OpenAI's
own client is used by the other tests of this folder.
"""

from __future__ import annotations

import asyncio
import functools
import json
import operator
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import yaml

from edgellama.model import LlamaForCausalLM
from edgellama.serve.app import Service
from support.child import REPOSITORY
from support.exported import chat_checkpoint, export, reference
from support.serving import TOOL_TEMPLATE, answered, serving, with_template

pytestmark = pytest.mark.slow
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    sizes = ("--batch", "4", "--context", "512", "--buckets", "32,128")
    made = export("clients", "--target", "cpu", "--weights", "fp32", "--cache", "float32", *sizes)
    folder = tmp_path_factory.mktemp("clients") / "tiny"
    return LlamaForCausalLM.from_pretrained(with_template(made, folder, TOOL_TEMPLATE), threads=1)


@pytest.fixture(scope="module")
def server(model: LlamaForCausalLM) -> Iterator[tuple[Service, str]]:
    with serving(model, queue=128) as running:
        yield running


@pytest.fixture
def no_space(model: LlamaForCausalLM) -> dict[str, int]:
    """A logit_bias: the random model would fill the context with the whitespace that JSON allows."""
    texts = {token: model.tokenizer.decode([token]) for token in range(model.engine.vocab_size)}
    return {str(token): -100 for token, text in texts.items() if text.isspace()}


@pytest.fixture
def litellm() -> Any:
    return pytest.importorskip("litellm", reason="install tests/serve/clients.txt")


@pytest.fixture
def openai_of_langchain() -> Any:
    return pytest.importorskip("langchain_openai", reason="install tests/serve/clients.txt")


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """lm-evaluation-harness, without a hub."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return pytest.importorskip("lm_eval", reason="install tests/serve/clients.txt")


class TestLiteLlm:
    @pytest.fixture
    def common(self, server: tuple[Service, str]) -> dict[str, Any]:
        return {"model": f"openai/{server[0].name}", "api_base": f"{server[1]}/v1", "api_key": "none", "temperature": 0}

    def test_a_chat(self, litellm: Any, common: dict[str, Any]) -> None:
        messages = [{"role": "user", "content": "hello"}]
        done = litellm.completion(messages=messages, max_tokens=8, **common)
        text = done.choices[0].message.content
        pieces = litellm.completion(messages=messages, max_tokens=8, stream=True, **common)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text
        assert done.usage.completion_tokens == 8

    def test_tools(self, litellm: Any, common: dict[str, Any], no_space: dict[str, int]) -> None:
        function = {"name": "weather", "description": "of a city", "parameters": CITY}
        done = litellm.completion(
            messages=[{"role": "user", "content": "Rome?"}],
            tools=[{"type": "function", "function": function}],
            tool_choice="required",
            logit_bias=no_space,
            **common,
        )
        (call,) = done.choices[0].message.tool_calls
        assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
        history = [
            {"role": "user", "content": "Rome?"},
            done.choices[0].message.model_dump(),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        again = litellm.completion(
            messages=history, tools=[{"type": "function", "function": function}], max_tokens=5, **common
        )
        assert again.usage.prompt_tokens > done.usage.prompt_tokens

    def test_a_schema(self, litellm: Any, common: dict[str, Any], no_space: dict[str, int]) -> None:
        schema = {"name": "place", "schema": CITY, "strict": True}
        done = litellm.completion(
            messages=[{"role": "user", "content": "Rome?"}],
            response_format={"type": "json_schema", "json_schema": schema},
            logit_bias=no_space,
            **common,
        )
        assert set(json.loads(done.choices[0].message.content)) == {"city"}

    def test_a_completion(self, litellm: Any, common: dict[str, Any]) -> None:
        common = {**common, "model": common["model"].replace("openai/", "text-completion-openai/")}
        done = litellm.text_completion(prompt="hello", max_tokens=4, logprobs=1, **common)
        assert len(done.choices[0].logprobs.tokens) <= 4 and done.usage.completion_tokens == 4

    def test_embeddings(self, litellm: Any, common: dict[str, Any], model: LlamaForCausalLM) -> None:
        del common["temperature"]
        done = litellm.embedding(input=["a", "bc"], **common)
        assert [len(entry["embedding"]) for entry in done.data] == [model.engine.head.hidden_size] * 2

    def test_responses(self, litellm: Any, common: dict[str, Any]) -> None:
        done = litellm.responses(input="hello", max_output_tokens=20, **common)
        assert done.status == "incomplete" and done.usage.output_tokens == 20

    def test_a_refusal(self, litellm: Any, common: dict[str, Any]) -> None:
        with pytest.raises(litellm.BadRequestError, match="context"):
            litellm.completion(messages=[{"role": "user", "content": "x" * 5000}], **common)


def test_a_router_keeps_conversations_on_their_server(litellm: Any, model: LlamaForCausalLM) -> None:
    """The configuration of the deployment page, whose settings are those of LiteLLM's Router."""
    config = yaml.safe_load((REPOSITORY / "runtime/serve/deployment/litellm.yaml").read_text())
    aliases = ["smollm2-135m-instruct-cpu-int8"]
    with serving(model, aliases=aliases) as (first, one), serving(model, aliases=aliases) as (second, other):
        for entry, address in zip(config["model_list"], (one, other), strict=True):
            entry["litellm_params"] |= {"api_base": f"{address}/v1", "api_key": "none"}
        router = litellm.Router(config["model_list"], **config["router_settings"])
        asyncio.run(conversations(router, [first, second]))


async def conversations(router: Any, services: list[Service]) -> None:
    """Check that the turns of each conversation go to one server, and that both are used."""
    homes = []
    for number in range(12):
        before = [answered(service) for service in services]
        for _ in range(3):
            await router.acompletion(
                model="assistant",
                messages=[{"role": "user", "content": f"hello {number}"}],
                max_tokens=3,
                metadata={"session_id": f"conversation {number}"},
            )
        counts = [answered(service) - count for service, count in zip(services, before, strict=True)]
        assert sorted(counts) == [0, 3]
        homes.append(counts.index(3))
    assert set(homes) == {0, 1}


class TestLangChain:
    @pytest.fixture
    def chat(self, openai_of_langchain: Any, server: tuple[Service, str], no_space: dict[str, int]) -> Any:
        name, address = server[0].name, f"{server[1]}/v1"
        common: dict[str, Any] = {"model": name, "base_url": address, "api_key": "none", "logit_bias": no_space}
        return openai_of_langchain.ChatOpenAI(temperature=0, max_tokens=150, **common)

    def test_invoke_batch_and_stream(self, chat: Any) -> None:
        answer = chat.invoke("hello")
        assert answer.usage_metadata["output_tokens"] > 0
        assert "".join(piece.content for piece in chat.stream("hello")) == answer.content
        assert [one.content for one in chat.batch(["hello"] * 3)] == [answer.content] * 3

    def test_bind_tools(self, chat: Any) -> None:
        from langchain_core.messages import HumanMessage, ToolMessage

        def weather(city: Literal["Oslo", "Rome"]) -> str:
            """The weather of a city."""
            return f"{city}: sunny"

        bound = chat.bind_tools([weather], tool_choice="any", strict=True, parallel_tool_calls=False)
        question = HumanMessage("How is the weather in Rome?")
        answer = bound.invoke([question])
        assert len(answer.tool_calls) == 1
        call = answer.tool_calls[0]
        assert call["name"] == "weather" and call["args"]["city"] in ("Oslo", "Rome")
        streamed = functools.reduce(operator.add, bound.stream([question]))
        assert [(one["name"], one["args"]) for one in streamed.tool_calls] == [(call["name"], call["args"])]
        told = [question, answer, ToolMessage(weather(**call["args"]), tool_call_id=call["id"])]
        assert chat.invoke(told).usage_metadata["output_tokens"] > 0

    def test_structured_output(self, chat: Any) -> None:
        schema = {"title": "place", "description": "a place", **CITY}
        answer = chat.with_structured_output(schema, method="json_schema").invoke("Rome?")
        assert answer["city"] in ("Oslo", "Rome")

    def test_embeddings(self, openai_of_langchain: Any, server: tuple[Service, str], model: LlamaForCausalLM) -> None:
        embeddings = openai_of_langchain.OpenAIEmbeddings(
            model=server[0].name, base_url=f"{server[1]}/v1", api_key="none", check_embedding_ctx_length=False
        )
        assert embeddings.embed_query("abc") == pytest.approx(model.embed("abc")[0].tolist(), abs=1e-5)
        assert len(embeddings.embed_documents([f"text {i}" for i in range(150)])) == 150


TASKS = {
    "choices": """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "rolling": """
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
""",
    "generated": """
task: generated
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{expected}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def documents(model: LlamaForCausalLM) -> list[dict[str, Any]]:
    """Questions, whose right choice is the one that transformers finds likeliest, and their greedy answers."""
    found = []
    for number in range(6):
        question = f"Question {number}: the sky is"
        choices = ["blue", "grey and wide", f"{number} km away"]
        ids = model.tokenizer.encode(question, add_special_tokens=False)  # as the harness does
        answer = model.generate([ids], max_new_tokens=6, do_sample=False)[0, len(ids) :]  # type: ignore[index]
        found.append(
            {
                "question": question,
                "choices": choices,
                "answer": max(
                    range(3),
                    key=lambda index, choices=choices, question=question: likelihood(  # type: ignore[misc]
                        model, question, " " + choices[index]
                    ),
                ),
                "expected": model.tokenizer.decode(answer.tolist()),
            }
        )
    return found


def likelihood(model: LlamaForCausalLM, before: str, text: str) -> float:
    """Returns what transformers gives for the log-likelihood of a text behind another, or behind bos."""
    begin = [] if before else model.tokenizer.encode("")
    encode = functools.partial(model.tokenizer.encode, add_special_tokens=False)
    ids, first = begin + encode(before + text), len(begin + encode(before))
    with torch.no_grad():
        logprobs = torch.log_softmax(reference()(torch.tensor([ids])).logits[0].double(), -1)
    return sum(float(logprobs[place - 1, ids[place]]) for place in range(first, len(ids)))


@pytest.mark.parametrize("way", ["endpoint", "endpoint in batches", "model"])
def test_the_harness_runs_its_three_kinds_of_tasks(
    harness: Any, server: tuple[Service, str], model: LlamaForCausalLM, tmp_path: Path, way: str
) -> None:
    """Every question is answered right: what is right was computed by transformers."""
    asked = documents(model)
    data = tmp_path / "data.json"
    data.write_text("".join(json.dumps(one) + "\n" for one in asked))
    (tmp_path / "tasks").mkdir()
    for name, text in TASKS.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text % data)
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    if way == "model":
        from edgellama.examples.evaluate_tasks import HarnessModel

        lm = HarnessModel(model)
    else:
        lm = LocalCompletionsAPI(
            model=server[0].name,
            base_url=f"{server[1]}/v1/completions",
            tokenizer=str(chat_checkpoint()),
            tokenizer_backend="huggingface",
            max_length=512,
            batch_size=1 if way == "endpoint" else 4,
        )
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    done = harness.simple_evaluate(model=lm, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)
    found = done["results"]
    assert found["choices"]["acc,none"] == 1 and found["generated"]["exact_match,none"] == 1
    texts = [one["question"] for one in asked]
    if way == "model":
        assert lm.loglikelihood_rolling([SimpleNamespace(args=("the sky " * 400,))])[0] < -1000  # several windows
    bits = -sum(likelihood(model, "", text) for text in texts) / sum(len(text.encode()) for text in texts)
    assert found["rolling"]["bits_per_byte,none"] == pytest.approx(bits / float(torch.tensor(2.0).log()), rel=1e-3)
