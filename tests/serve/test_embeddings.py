"""/v1/embeddings, with OpenAI's client, against transformers' hidden states."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch

from edgellama import LlamaForCausalLM
from edgellama.generation.scoring import POOLINGS
from edgellama.serve import command
from edgellama.serve.app import Service
from edgellama.serve.scheduler import QueueFullError
from support.exported import CONTEXT, export_tiny, reference
from support.serving import client, serving

TEXTS = ["a", "The sky is blue.", "é🙂 x", "the end " * 7]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(export_tiny("cpu", chat=True), threads=1)


def theirs(ids: list[int], pooling: str) -> np.ndarray:
    """Returns the normalised embedding that transformers' last hidden state gives."""
    with torch.no_grad():
        states = reference()(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].numpy()
    pooled = {"last": states[-1], "mean": states.mean(0), "cls": states[0]}[pooling]
    return np.asarray(pooled / np.linalg.norm(pooled))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings_are_those_of_transformers(
    api: openai.OpenAI, name: str, model: LlamaForCausalLM, pooling: str
) -> None:
    ids = [model.tokenizer.encode(text) for text in TEXTS]
    assert max(map(len, ids)) > 2 * 16  # several chunks
    for given in (TEXTS, ids):
        for encoding in ("float", "base64"):
            done = api.embeddings.create(
                model=name, input=given, encoding_format=encoding, extra_body={"pooling": pooling}
            )
            assert [entry.index for entry in done.data] == [0, 1, 2, 3]
            for one, entry in zip(ids, done.data, strict=True):
                vector: Any = entry.embedding
                if isinstance(vector, str):  # the client decodes the vector only if the call names no format
                    vector = np.frombuffer(base64.b64decode(vector), "<f4")
                np.testing.assert_allclose(vector, theirs(one, pooling), rtol=0, atol=2e-5)
                np.testing.assert_allclose(vector, model.embed([one], pooling=pooling)[0], rtol=0, atol=1e-5)
            assert done.usage.prompt_tokens == done.usage.total_tokens == sum(map(len, ids))


def test_a_single_text_and_the_clients_default(api: openai.OpenAI, name: str, model: LlamaForCausalLM) -> None:
    ids = model.tokenizer.encode(TEXTS[1])
    for given in (TEXTS[1], ids):
        done = api.embeddings.create(model=name, input=given)  # this asks for base64, and decodes it
        np.testing.assert_allclose(done.data[0].embedding, theirs(ids, "last"), rtol=0, atol=2e-5)


def test_the_server_has_a_pooling(model: LlamaForCausalLM) -> None:
    assert command.POOLINGS == POOLINGS
    with serving(model, pooling="mean") as (service, address):
        done = client(address).embeddings.create(model=service.name, input="abc")
        np.testing.assert_allclose(
            done.data[0].embedding, theirs(model.tokenizer.encode("abc"), "mean"), rtol=0, atol=2e-5
        )


def test_more_texts_than_the_queue_has_places(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in groups; a group that finds the queue full tries again."""
    texts = [f"text {number % 7}" for number in range(30)]
    with serving(model, queue=0) as (service, address):
        submit, refusals = service.scheduler.submit, []

        def sometimes_full(*arguments: Any, **named: Any) -> None:
            refusals.append(len(refusals) % 3 == 1)
            if refusals[-1]:
                raise QueueFullError
            submit(*arguments, **named)

        monkeypatch.setattr(service.scheduler, "submit", sometimes_full)
        done = client(address).embeddings.create(model=service.name, input=texts)
        assert len(done.data) == 30 and sum(refusals) > 3
        vectors = np.array([entry.embedding for entry in done.data])
        np.testing.assert_array_equal(vectors, vectors[[number % 7 for number in range(30)]])


def test_embeddings_and_answers_run_side_by_side(api: openai.OpenAI, name: str) -> None:
    def ask(number: int) -> Any:
        if number % 2:
            return api.embeddings.create(model=name, input=TEXTS).data[number % 4].embedding
        done = api.completions.create(model=name, prompt=TEXTS[number % 4], max_tokens=9, temperature=0, seed=1)
        return done.choices[0].text

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dimensions": 7}, "cannot be shortened"),
        ({"input": ""}, None),
        ({"input": []}, "must be a text"),
        ({"input": [[]]}, "input"),
        ({"input": [1, "a"]}, "input.1"),
        ({"input": [10**6]}, "this model's are 0.."),
        ({"input": [5] * (CONTEXT + 1)}, f"context holds {CONTEXT}"),
        ({"input": "word " * 2000}, f"context holds {CONTEXT}"),
        ({"input": ["a"] * 2049}, "the limit is 2,048"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"pooling": "max"}, "pooling"),
        ({"model": "other"}, "no model"),
    ],
)
def test_wrong_requests_are_refused(
    server: tuple[Service, str], name: str, wrong: dict[str, Any], message: str | None
) -> None:
    body = {"model": name, "input": "x", **wrong}
    answer = httpx.post(f"{server[1]}/v1/embeddings", json=body, timeout=60)
    if message is None:  # this tokenizer makes a token, bos, of an empty text
        assert answer.status_code == 200
    else:
        assert answer.status_code in (400, 404) and message in answer.json()["error"]["message"]


def test_a_text_may_fill_the_context(api: openai.OpenAI, name: str, server: tuple[Service, str]) -> None:
    size = server[0].model.artifact.manifest.config["hidden_size"]
    done = api.embeddings.create(model=name, input=[5] * CONTEXT, dimensions=size)
    np.testing.assert_allclose(done.data[0].embedding, theirs([5] * CONTEXT, "last"), rtol=0, atol=2e-5)
