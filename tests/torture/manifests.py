"""manifest.json of an artifact: values mutated under a fitting digest, and damaged bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from support.json_mutations import damaged, mutated
from torture.case import Case, FaultClass
from torture.fixtures import copied, fixture
from torture.forked import in_child
from torture.loading import compare_with
from torture.outcomes import Outcome


def recomputed(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """One or two values of the manifest are mutated, and the digest is written anew."""
    from edgellama.artifact.manifest import MANIFEST, digest

    good = fixture(shared, "artifact")
    values = json.loads((good / MANIFEST).read_text())
    values.pop("digest")
    compare = compare_with(good)
    for case in cases:
        folder = copied(good, case.folder)
        changed = mutated(values, case.rng)
        if case.rng.random() < 0.3 and isinstance(changed, dict) and len(changed) > 1:
            changed = mutated(changed, case.rng)
        text = json.dumps({**changed, "digest": digest(changed)})
        (folder / MANIFEST).write_text(text)
        yield in_child(lambda folder=folder: compare(folder), names=[MANIFEST, folder.name])


def bytes_damaged(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """Bytes of the manifest are changed, removed or inserted; the digest stays."""
    from edgellama.artifact.manifest import MANIFEST

    good = fixture(shared, "artifact")
    data = (good / MANIFEST).read_bytes()
    compare = compare_with(good)
    for case in cases:
        folder = copied(good, case.folder)
        (folder / MANIFEST).write_bytes(damaged(data, case.rng))
        yield in_child(lambda folder=folder: compare(folder), names=[MANIFEST])


SAME = "the artifact loads, and its logits (prefill and decode) and tokens are exactly those of the undamaged one"
CLASSES = (
    FaultClass("manifest-digest", "values of manifest.json mutated, with a fitting digest", SAME, 500, 120, recomputed),
    FaultClass("manifest-bytes", "bytes of manifest.json changed, removed or inserted", SAME, 300, 100, bytes_damaged),
)
