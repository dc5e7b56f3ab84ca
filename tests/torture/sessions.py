"""Session files, and the tokenizer files of an artifact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from support.json_mutations import damaged, mutated
from torture.artifacts import broken
from torture.case import Case, FaultClass
from torture.fixtures import copied, fixture
from torture.forked import in_child
from torture.outcomes import Outcome

TEXT = "The quick brown fox, \u00e9\U0001f642 the 12th."
CHAT = [{"role": "user", "content": "What is it?"}]


def sessions(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """A saved session of the toy model, with a mutated header or damaged bytes."""
    import numpy as np

    from edgellama.artifact.manifest import Artifact
    from support.toy_model import load, model_of
    from torture.weight_headers import broken as broken_header

    model = load(shared / "toy", eos_token_id=())
    session = model.session()
    session.generate([5, 6, 7, 8, 9], max_new_tokens=4)
    good = shared / "good.session"
    session.save(good)
    ids, data = list(session.ids), good.read_bytes()
    held = {name: array.copy() for name, array in model.engine.prefixes.held(0, len(ids)).items()}
    for case in cases:
        path = case.folder / "x.session"
        path.write_bytes(broken_header(data, case.rng) if case.rng.random() < 0.5 else broken(data, case.rng))

        def restore(path: Path = path) -> Outcome:
            loaded = model_of(Artifact.open(shared / "toy"))  # a model cannot be used after a fork
            again = loaded.session(path)
            found = loaded.engine.prefixes.held(0, len(ids))
            same = list(again.ids) == ids and all(np.array_equal(found[name], held[name]) for name in held)
            return Outcome("harmless") if same else Outcome("silent", "loads another text, or other keys and values")

        yield in_child(restore, [path.name])


def tokenizer_files(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """tokenizer.json, tokenizer_config.json, generation_config.json or the chat template of an artifact, damaged."""
    import tokenizers

    import edgellama.model
    from edgellama.artifact.manifest import Artifact
    from edgellama.generation.stored_settings import artifact_settings
    from edgellama.text.tokenizer import Tokenizer

    assert edgellama.model
    good = fixture(shared, "artifact")
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
    for case in cases:
        folder = copied(good, case.folder)
        path = folder / names[case.number % len(names)]
        if path.suffix == ".json" and case.rng.random() < 0.6:
            path.write_text(json.dumps(mutated(json.loads(path.read_text()), case.rng)))
        else:
            path.write_bytes(damaged(path.read_bytes(), case.rng))

        def load(folder: Path = folder) -> Outcome:
            artifact_settings(Artifact.open(folder))
            tokenizer = Tokenizer.from_folder(folder)
            expected = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
            same = tokenizer.encode(TEXT) == expected and isinstance(tokenizer.render_chat(CHAT), str)
            return Outcome("harmless") if same else Outcome("silent", "a text has other tokens than its file says")

        yield in_child(load, [path.name, "chat template"], 60.0)


CLASSES = (
    FaultClass(
        "sessions",
        "a session file with a mutated header or damaged bytes",
        "the session loads with exactly the text, keys and values that were saved",
        600,
        200,
        sessions,
    ),
    FaultClass(
        "tokenizer-files",
        "tokenizer.json, tokenizer_config.json, generation_config.json or chat_template.jinja of an artifact",
        "users may edit these files, so the manifest has no hash of them: the damaged file is valid, and the runtime "
        "reads what the tokenizers library reads from it",
        300,
        40,
        tokenizer_files,
    ),
)
