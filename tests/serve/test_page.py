"""The built-in chat page in headless Chromium (`make browser`, or CHROMIUM=path), over loopback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.model import LlamaForCausalLM
from support.serving import Gate, client, serving, wait_until, with_template

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="no browser: run `make browser`"),
]


@pytest.fixture(scope="module")
def model(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(with_template(tiny_artifact, tmp_path_factory.mktemp("served") / "tiny"))


@pytest.fixture
def page() -> Iterator[Any]:
    """A browser page. Fails if the page has a script error, violates its policy, or requests anything elsewhere."""
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "no browser: run `make browser`"
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
    ):
        page = browser.new_page()
        page.set_default_timeout(60_000)
        problems: list[str] = []
        page.on("console", lambda said: "Content Security" in said.text and problems.append(said.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: local(request.url) or problems.append(f"asked for {request.url}"))
        yield page
        assert problems == []


def local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:"))


def readable(model: LlamaForCausalLM) -> Any:
    """Engine.forward that allows letters only: random bytes are rarely complete characters."""
    forward = model.engine.forward
    others = np.ones(model.engine.vocab_size, bool)
    others[model.tokenizer.encode("abcdefghijklmnopqrstuvwxyz")] = False
    return lambda *arguments: np.where(others, np.float32(-1e4), forward(*arguments))


def test_a_conversation_streams(page: Any, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(model)
    gate.forward = readable(model)
    monkeypatch.setattr(model.engine, "forward", gate)
    with serving(model, gate) as (service, address):
        page.goto(address)
        page.get_by_role("heading", name=service.name).wait_for()
        page.locator("#temperature").fill("0")
        page.locator("#text").fill("<b>hi</b>")
        page.locator("#text").press("Enter")
        answer = page.locator(".assistant")
        answer.wait_for()
        gate.passes.release(12)
        wait_until(answer.text_content)
        assert page.locator("#stop").is_visible()  # text is visible before the answer ends
        gate.open.set()
        page.locator("#send").wait_for()
        asked: Any = [{"role": "user", "content": "<b>hi</b>"}]
        expected = client(address).chat.completions.create(model=service.name, messages=asked, temperature=0)
        text = expected.choices[0].message.content
        assert page.evaluate("messages") == [*asked, {"role": "assistant", "content": text}]
        assert answer.evaluate("node => node.textContent") == text
        assert page.locator(".user").text_content() == "<b>hi</b>" and page.locator("main b").count() == 0
        assert "tokens/s" in page.locator("#status").text_content()
        page.locator("#text").fill("more")
        page.locator("#send").click()
        page.locator("#status.error").wait_for()  # the small context is full
        assert "this model's context holds 64" in page.locator("#status").text_content()
        assert page.locator("#text").input_value() == "more" and page.locator("article").count() == 2
        page.locator("#new").click()
        assert page.locator("article").count() == 0 and page.evaluate("messages") == []


def test_stop_frees_the_row(page: Any, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(model)
    monkeypatch.setattr(model.engine, "forward", gate)
    with serving(model, gate) as (service, address):
        page.goto(address)
        page.locator("#text").fill("hi")
        page.locator("#send").click()
        page.locator(".assistant").wait_for()
        gate.passes.release(2)
        page.locator("#stop").click()
        page.get_by_text("Stopped").wait_for()
        gate.open.set()
        wait_until(lambda: service.scheduler.running == 0)
        assert service.scheduler.counters.new_tokens < 20
        assert page.locator("#send").is_visible()


def test_the_page_asks_for_a_key(page: Any, model: LlamaForCausalLM) -> None:
    with serving(model, api_key="sesame") as (service, address):
        page.goto(address)
        page.locator("#status.error").wait_for()
        page.locator("#key").fill("sesame")
        page.locator("#key").press("Tab")
        page.get_by_role("heading", name=service.name).wait_for()
        page.locator("#text").fill("hi")
        page.locator("#send").click()
        page.get_by_text("tokens/s").wait_for()


def test_the_docs_page_shows_every_endpoint(page: Any, model: LlamaForCausalLM) -> None:
    with serving(model, api_key="sesame") as (_, address):
        page.goto(f"{address}/docs")
        page.get_by_text("POST /v1/chat/completions").wait_for()
        described = page.request.get(f"{address}/openapi.json").json()["paths"]
        titles = {f"{method.upper()} {path}" for path, operations in described.items() for method in operations}
        assert sorted(page.locator("h2").all_inner_texts()) == sorted(titles)
