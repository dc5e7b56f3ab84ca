"""A check of schemathesis: what the description calls valid is refused only for reasons that it cannot state."""

from __future__ import annotations

from typing import Any

import schemathesis

CODES = {"context_length_exceeded"}
# Prompts times n; a response_format that needs the eos token, which min_tokens forbids.
MESSAGES = ("answers (prompts times n)", "the settings rule out every token")
# Field: why the description cannot state what is valid.
FIELDS = {
    "best_of": "it is the value of n",
    "response_format": "its schema may contradict itself, or need an eos token",
    "logit_bias": "its keys are token ids",
    "prompt": "a text may have no token",
    "tools": "two may have one name, a schema may contradict itself, and they do not go with every response_format",
    "input": "its items may hold no message, or its texts no token",
    "tool_choice": "it names one of the tools, or needs one",
    "messages": "the arguments of a call are the text of a JSON object",
    "min_tokens": "it may be above the limit of new tokens",
}


@schemathesis.check
def refused_for_a_reason(ctx: Any, response: Any, case: Any) -> None:
    """Fail for a valid request that is refused for another reason."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    error = response.json()["error"]
    stated = any(text in error["message"] for text in MESSAGES)
    assert stated or error["code"] in CODES or error["param"] in FIELDS, error
