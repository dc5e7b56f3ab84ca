"""Chat templates: bombs, and the forms in which models are published, which must work."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torture.case import Case, FaultClass
from torture.forked import in_child
from torture.outcomes import Outcome
from torture.template_texts import BOMBS, PUBLISHED

SECONDS = 60.0  # of a case; the product's limit is 2 seconds of processor time, which take longer on a busy machine
TEXTS = (
    "hi",
    "What is 2 + 2?",
    "  spaced  ",
    '\u00e9\U0001f642 & <tag> "quoted" {{ x }} {% y %}',
    "line\nline\n\n",
    "a" * 500,
)


def conversation(rng: random.Random) -> list[dict[str, str]]:
    """Messages as applications send them: an optional system message, then user and assistant in turns."""
    messages = [{"role": "system", "content": rng.choice(TEXTS)}] if rng.random() < 0.5 else []
    for number in range(rng.choice([1, 3, 5])):
        messages.append({"role": ("user", "assistant")[number % 2], "content": rng.choice(TEXTS)})
    return messages


def published(name: str, rng: random.Random, reference: Callable[..., Any]) -> Outcome:
    """Render one of PUBLISHED, and compare it with transformers, whose function is `reference`."""
    from edgellama.text.chat_template import ChatTemplate

    source, messages = PUBLISHED[name], conversation(rng)
    variables: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": rng.random() < 0.7}
    expected = reference(
        [messages],
        chat_template=source,
        add_generation_prompt=variables["add_generation_prompt"],
        tools=None,
        bos_token="<s>",
        eos_token="</s>",
    )[0][0]
    template = ChatTemplate(source)
    template.check()
    found = template.render(messages, {**variables, "tools": None})
    again = template.render(messages, {**variables, "tools": None})
    if found == expected == again:
        return Outcome("harmless")
    return Outcome("silent", f"{name}: {found!r}, not {expected!r}")


def bomb(source: str) -> Outcome:
    """Compile and render a bomb. What remains must render an ordinary template at once."""
    from edgellama.errors import UserError
    from edgellama.text.chat_template import LIMITS, ChatTemplate

    template = ChatTemplate(source)
    refused = None
    try:
        template.check()
        text = template.render([{"role": "user", "content": "hi"}], {"add_generation_prompt": True})
    except UserError as error:
        refused = error
    other = ChatTemplate("{{ messages[0].content }}!")
    if other.render([{"role": "user", "content": "hi"}], {}) != "hi!":
        return Outcome("silent", "another template renders something else afterwards")
    if refused is not None:
        raise refused
    if len(text) > LIMITS.characters:
        return Outcome("silent", f"{len(text):,} characters")
    return Outcome("harmless")


def run(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """Every second case is a bomb."""
    from transformers.utils.chat_template_utils import render_jinja_template  # here: a child would import it again

    names = list(PUBLISHED)
    for case in cases:
        half = case.number // 2
        if case.number % 2:
            name = names[half % len(names)]
            outcome = in_child(
                lambda name=name, rng=case.rng: published(name, rng, render_jinja_template), seconds=SECONDS
            )  # type: ignore[misc]
            yield Outcome("unclear", f"{name}: {outcome.detail}") if outcome.kind == "clear" else outcome
        else:
            source = BOMBS[half % len(BOMBS)].replace("{n}", str(case.rng.randrange(10**6, 10**7)))
            source = source.replace("{m}", str(case.rng.randrange(2000, 9000)))
            source = source.replace("{x}", "".join(case.rng.choice("qwxyz") for _ in range(8)))
            (case.folder / "chat_template.jinja").write_text(source)
            yield in_child(lambda source=source: bomb(source), seconds=SECONDS)  # type: ignore[misc]


CLASSES = (
    FaultClass(
        "templates",
        f"{len(BOMBS)} kinds of bombs in chat templates, and {len(PUBLISHED)} forms of published templates",
        "a published form gives the text that transformers gives; a bomb gives a text within the limits",
        220,
        40,
        run,
    ),
)
