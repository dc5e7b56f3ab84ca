"""Loads an artifact as an application does, and compares what it computes with the undamaged one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torture.fixtures import DECODE, PREFILL
from torture.forked import result_of_child
from torture.outcomes import Outcome

TEXT = "The quick brown fox, \u00e9\U0001f642 the 12th."
CHAT = [{"role": "user", "content": "What is it?"}]


class Computed(NamedTuple):
    """What an artifact computes: logits of a prefill and of a decode step, and the tokens of a text and a chat."""

    prefill: list[float]
    decode: list[float]
    ids: list[int]
    chat: list[int]
    text: str


def compute(folder: Path, check: str = "once") -> Computed:
    """Load an artifact in MindSpore Lite, and run it. Raises what the product raises."""
    import numpy as np

    from edgellama.artifact.manifest import Artifact
    from edgellama.engine.engine import Engine
    from edgellama.text.tokenizer import Tokenizer

    artifact = Artifact.open(folder, check=check)
    engine = Engine(artifact, 1)
    rows = engine.batch
    prefill = np.array([PREFILL] * rows)
    zero, length = np.zeros(rows, np.int64), np.full(rows, len(PREFILL))
    first = engine.forward(prefill, zero, length)[0].tolist()
    second = engine.forward(np.full((rows, 1), DECODE), length, np.ones(rows, np.int64))[0].tolist()
    tokenizer = Tokenizer.from_folder(artifact.path)
    ids = tokenizer.encode(TEXT)
    return Computed(first, second, ids, tokenizer.encode_chat(CHAT), tokenizer.decode(ids))


def compare_with(good: Path, check: str = "once") -> Callable[[Path], Outcome]:
    """Return a function for children of this process: loads an artifact, and compares what it computes with `good`.

    It returns "harmless" if everything is exactly equal, otherwise "silent". What loading needs is imported here, so
    that each child has it already; nothing is loaded, because native threads do not survive a fork.
    """
    import edgellama.model
    from edgellama.backend.lite_graph import import_lite

    assert edgellama.model and import_lite()
    expected = result_of_child(lambda: compute(good)._asdict())

    def compare(folder: Path) -> Outcome:
        found = compute(folder, check)._asdict()
        differing = [name for name, value in found.items() if value != expected[name]]
        return Outcome("silent", f"loads, and its {', '.join(differing)} differ") if differing else Outcome("harmless")

    return compare
