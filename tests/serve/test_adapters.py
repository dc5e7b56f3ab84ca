"""LoRA adapters in the endpoint, where each is a model, and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from edgellama.engine.adapters import BASE
from edgellama.errors import UserError
from edgellama.model import LlamaForCausalLM
from edgellama.serve.app import Service
from edgellama.serve.command import load_adapter
from support import exported
from support.adapters import make_adapter
from support.checkpoints import export_all
from support.child import run_child, run_cli
from support.serving import client, serving

PROMPT = "x" * 40
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "artifact"
    job: dict[str, Any] = {"target": "cpu", "weights": "fp32", "context": 128, "buckets": [16], "batch": 3}
    export_all([{"model": exported.chat_checkpoint(), "out": out, "verify": False, **job}])
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("folders")
    return {
        name: make_adapter(exported.chat_checkpoint(), folder / name, seed=index)
        for index, name in enumerate(("one", "two"))
    }


@pytest.fixture(scope="module")
def model(artifact: Path, folders: dict[str, Path]) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(artifact, threads=2)
    load_adapter(model, f"one={folders['one']}")
    load_adapter(model, f"two={folders['two']}:-0.5")
    return model


@pytest.fixture(scope="module")
def server(model: LlamaForCausalLM) -> Iterator[tuple[Service, str]]:
    with serving(model, aliases=["alias"]) as running:
        yield running


def names(server: tuple[Service, str]) -> dict[str, str]:
    """The models of the server -> the adapter of each."""
    return {server[0].name: BASE, "alias": BASE, "one": "one", "two": "two"}


def continuation(artifact: Path, folders: dict[str, Path], adapter: str) -> str:
    """The text that greedy generate() gives in a model with this adapter alone."""
    model = LlamaForCausalLM.from_pretrained(artifact, threads=2)
    if adapter != BASE:
        model.load_adapter(folders[adapter], scale={"one": 1.0, "two": -0.5}[adapter])
    prompt = model.tokenizer.encode(PROMPT)
    ids: Any = model.generate([prompt], max_new_tokens=8, do_sample=False)
    return model.tokenizer.decode(ids[0, len(prompt) :].tolist(), skip_special_tokens=True)


def test_each_adapter_is_a_model(server: tuple[Service, str]) -> None:
    api = client(server[1])
    assert [model.id for model in api.models.list()] == list(names(server))
    assert api.models.retrieve("two").id == "two"
    with pytest.raises(openai.NotFoundError, match=r"no model 'three' here\. Use .* or 'one' or 'two'"):
        api.completions.create(model="three", prompt=PROMPT)


def test_answers_of_all_models_run_together(
    server: tuple[Service, str], artifact: Path, folders: dict[str, Path]
) -> None:
    api = client(server[1])
    expected = {adapter: continuation(artifact, folders, adapter) for adapter in (BASE, "one", "two")}
    assert len(set(expected.values())) == 3
    asked = list(names(server)) * 3
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(threads.map(lambda name: api.completions.create(model=name, prompt=PROMPT, **GREEDY), asked))
    for name, answer in zip(asked, answers, strict=True):
        assert answer.model == name
        assert answer.choices[0].text == expected[names(server)[name]]


def test_a_prefix_serves_only_the_model_that_computed_it(model: LlamaForCausalLM) -> None:
    def cached(api: openai.OpenAI, name: str) -> int:
        answer = api.completions.create(model=name, prompt="y" * 70, **GREEDY)
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    model.forget()
    with serving(model) as (service, address):
        api = client(address)
        for name in (service.name, "one", "two"):
            assert cached(api, name) == 0
        for name in (service.name, "one", "two"):
            assert cached(api, name) >= 48  # whole chunks of 16


def test_wrong_names_are_refused(model: LlamaForCausalLM, folders: dict[str, Path]) -> None:
    for text in ("three", "=three", f"{BASE}={folders['one']}", f"three={folders['one']}:0", "three="):
        with pytest.raises(UserError, match="needed"):
            load_adapter(model, text)
    with pytest.raises(UserError, match="'one' is a name of the model and of an adapter"):
        Service(model, queue=1, aliases=["one"])


def test_the_commands_take_an_adapter(artifact: Path, folders: dict[str, Path]) -> None:
    model = LlamaForCausalLM.from_pretrained(artifact)
    model.load_adapter(folders["two"], scale=-0.5)
    settings = ("--lora", f"{folders['two']}:-0.5", "--max-new-tokens", "8", "--no-do-sample")
    done = run_cli("generate", str(artifact), "--prompt", PROMPT, "--json", *settings)
    expected = [piece.id for piece in model.stream_chat(PROMPT, max_new_tokens=8, do_sample=False)]
    assert json.loads(done.stdout)["ids"] == expected, done.stderr
    chat = run_child("-m", "edgellama", "chat", str(artifact), *settings, input=f"{PROMPT}\n")
    assert chat.stdout.strip() == model.chat(PROMPT, max_new_tokens=8, do_sample=False).content.strip()
    refused = run_cli("generate", str(artifact), "--prompt", PROMPT, "--lora", str(artifact))
    assert refused.returncode == 2 and "has no adapter_config.json" in refused.stderr
