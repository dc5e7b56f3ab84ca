"""The server of a test file's `model`, OpenAI's client for it, and the name of its model."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from edgellama import LlamaForCausalLM
from edgellama.serve.app import Service
from support.serving import client, serving


@pytest.fixture(scope="module")
def server(model: LlamaForCausalLM) -> Iterator[tuple[Service, str]]:
    """The running service and its URL. A file that needs other options defines its own."""
    with serving(model) as running:
        yield running


@pytest.fixture
def api(server: tuple[Service, str]) -> openai.OpenAI:
    return client(server[1])


@pytest.fixture
def name(server: tuple[Service, str]) -> str:
    return server[0].name
