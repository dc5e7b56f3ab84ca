"""A server in this process, over loopback, for tests: a Service of an artifact, run by uvicorn in a thread."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from edgellama.model import LlamaForCausalLM
from edgellama.serve.app import Service
from edgellama.serve.command import listen, url
from edgellama.serve.http_server import UNREAD_SECONDS, EndpointServer, server_config

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


# The same with tools, in the syntax "hermes".
TOOL_TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}{# <tool_call> #}" + TEMPLATE


def with_template(artifact: Path, folder: Path, template: str = TEMPLATE) -> Path:
    """Copy the artifact to another folder and add a chat template."""
    shutil.copytree(artifact, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@contextmanager
def serving(
    model: LlamaForCausalLM, gate: Gate | None = None, connections: int = 512, **options: Any
) -> Iterator[tuple[Service, str]]:
    """Run a service inside the block. Yields (service, URL).

    Args:
        model: what it serves.
        gate: opened when the test is over.
        connections: limit of open connections.
        options: of Service.
    """
    service = Service(model, **{"queue": 64, **options})
    with listen("127.0.0.1", 0) as listening:
        server = EndpointServer(server_config(service, 1 - UNREAD_SECONDS, connections))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield service, url(listening)
        finally:
            if gate is not None:
                gate.open.set()
            server.should_exit = True
            thread.join()


def client(address: str, key: str = "none") -> openai.OpenAI:
    """Returns an OpenAI client of the server at `address`, which does not retry."""
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)


def answered(service: Service, endpoint: str = "/v1/chat/completions") -> int:
    """Returns how many requests of an endpoint a server has answered with status 200."""
    label = re.escape(f'endpoint="{endpoint}",status="200"')
    found = re.findall(rf"edgellama_requests_total{{{label}}} (\S+)", service.metrics.text().decode())
    return int(sum(map(float, found)))


def wait_until(condition: Any, seconds: float = 60) -> None:
    """Waits until `condition()` is true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.005)


class Gate:
    """Replaces Engine.forward. Lets one pass through for each `release`, or all passes once it is open."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.forward = model.engine.forward
        self.passes = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        while not self.open.is_set() and not self.passes.acquire(timeout=0.01):
            pass
        return self.forward(*arguments)
