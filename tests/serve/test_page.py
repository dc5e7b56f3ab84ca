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
from support.scripted_model import ScriptedModel
from support.serving import TEMPLATE, Gate, client, serving, wait_until, with_template

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
        page.locator("#open-settings").click()
        page.locator("#temperature").fill("0")
        page.keyboard.press("Escape")
        page.locator("#text").fill("<b>hi</b>")
        page.locator("#text").press("Enter")
        answer = page.locator(".assistant .body")
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
        assert answer.evaluate("node => node.textContent").strip() == text
        assert page.locator(".user .body").text_content() == "<b>hi</b>" and page.locator("main b").count() == 0
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


MARKDOWN = """Some **bold** text and a [link](https://example.com).

```python
def double(x):
    return "2" * x
```

| a | b |
| --- | --- |
| 1 | 2 |

![x](http://127.0.0.2/x.png) <script>alert(1)</script> <img src=x onerror=alert(1)>"""


def test_markdown_conversations_settings_and_a_phone(page: Any, tmp_path: Path) -> None:
    scripted = ScriptedModel(tmp_path / "scripted", TEMPLATE)
    model = scripted.model

    def say(text: str, *messages: tuple[str, str]) -> None:
        told = [{"role": role, "content": content} for role, content in messages]
        scripted.write(text, len(model.tokenizer.encode_chat(told)))

    def ask(text: str) -> None:
        page.locator("#text").fill(text)
        page.locator("#text").press("Enter")
        page.get_by_text("tokens/s").wait_for()

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    with serving(model) as (_, address):
        page.goto(address)
        say(MARKDOWN, ("user", "Show it"))
        ask("Show it")
        body = page.locator(".assistant .body")
        assert body.locator("strong").text_content() == "bold" and body.locator("td").all_inner_texts() == ["1", "2"]
        assert body.locator(".hljs-keyword").all_inner_texts() == ["def", "return"]
        assert body.locator("script, img").count() == 0 and "<script>alert(1)</script>" in body.text_content()
        assert body.locator("a").first.get_attribute("rel") == "noopener noreferrer"
        body.locator("pre button").click()
        wait_until(lambda: page.evaluate("navigator.clipboard.readText()").startswith("def double(x):"))
        page.locator(".assistant .actions button").first.click()
        wait_until(lambda: page.evaluate("navigator.clipboard.readText()") == MARKDOWN)

        page.locator("#open-settings").click()
        page.locator("#system").fill("Be kind")
        page.locator("#max_tokens").fill("3")
        page.locator("#theme").select_option("dark")
        page.get_by_role("button", name="Close").click()
        say("regenerated", ("system", "Be kind"), ("user", "Show it"))
        page.get_by_role("button", name="Regenerate").click()
        page.get_by_text("its limit is reached").wait_for()
        assert page.evaluate("messages").pop()["content"] == "reg"
        assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"

        page.locator("#text").press("ArrowUp")
        assert page.locator("#text").input_value() == "Show it"
        say("new", ("system", "Be kind"), ("user", "Edited"))
        ask("Edited")
        assert [message["content"] for message in page.evaluate("messages")] == ["Edited", "new"]

        page.keyboard.press("Alt+n")
        assert page.locator("article").count() == 0
        say("two", ("system", "Be kind"), ("user", "Second"))
        ask("Second")
        page.reload()
        page.locator("article").first.wait_for()
        assert page.locator("#chats .open").all_inner_texts() == ["Second", "Edited"]
        page.set_viewport_size({"width": 380, "height": 700})
        assert not page.locator("#side").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        page.locator("#menu").click()
        page.get_by_text("Edited").click()
        assert page.locator(".user .body").text_content() == "Edited" and not page.locator("#side").is_visible()
        page.locator("#menu").click()
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_label("Delete Second").click()
        assert page.locator("#chats .open").all_inner_texts() == ["Edited"]


def test_the_docs_page_shows_every_endpoint(page: Any, model: LlamaForCausalLM) -> None:
    with serving(model, api_key="sesame") as (_, address):
        page.goto(f"{address}/docs")
        page.get_by_text("POST /v1/chat/completions").wait_for()
        described = page.request.get(f"{address}/openapi.json").json()["paths"]
        titles = {f"{method.upper()} {path}" for path, operations in described.items() for method in operations}
        assert sorted(page.locator("h2").all_inner_texts()) == sorted(titles)
