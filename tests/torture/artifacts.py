"""The files of an artifact: flipped bits in each of them, and mutated MindIR under the old and under new hashes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from torture.case import Case, FaultClass
from torture.fixtures import copied, fixture
from torture.forked import in_child
from torture.outcomes import Outcome


def flipped(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """One bit of one file. The files take turns, so that small ones are hit as often as large ones."""
    from edgellama.artifact.files import COMPANIONS
    from torture.loading import compare_with

    good = fixture(shared, "artifact")
    files = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file())
    listed = [name for name in files if str(name) not in COMPANIONS]
    compare = compare_with(good)
    for case in cases:
        folder = copied(good, case.folder)
        name = listed[case.number % len(listed)]
        data = bytearray((folder / name).read_bytes())
        data[case.rng.randrange(len(data))] ^= 1 << case.rng.randrange(8)
        (folder / name).write_bytes(data)
        yield in_child(lambda folder=folder: compare(folder), names=[name.name])


def mindir(recompute: bool) -> Callable[[Iterator[Case], Path], Iterator[Outcome]]:
    """Return the `run` of a class that mutates graph files. recompute: the manifest gets the new hash and size."""

    def run(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
        from torture.loading import compare_with

        good = fixture(shared, "artifact")
        compare = compare_with(good)
        for case in cases:
            folder = copied(good, case.folder)
            path = case.rng.choice(sorted((folder / "graphs").glob("*.mindir")))
            data = path.read_bytes()
            changed = rewired(data, case.rng) if case.rng.random() < 0.5 else broken(data, case.rng)
            path.write_bytes(changed)
            if recompute:
                adopt(folder, f"graphs/{path.name}")
            yield in_child(lambda folder=folder: compare(folder), names=[path.name, "MindIR", "graph"])

    return run


def adopt(folder: Path, name: str) -> None:
    """Write the hash and size of a graph file into the manifest, under a fitting digest."""
    import json

    from edgellama.artifact.manifest import MANIFEST, file_entry
    from support.manifest_edits import rewrite

    entry = file_entry(folder, name)
    graphs = json.loads((folder / MANIFEST).read_text())["graphs"]
    for graph in graphs:
        if graph["file"] == name:
            graph.update(sha256=entry.sha256, bytes=entry.bytes)
    rewrite(folder, graphs=graphs)


def broken(data: bytes, rng: random.Random) -> bytes:
    """Return a copy of a file with bytes changed, removed, inserted or repeated, or with its end cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(changed))
        kind = rng.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del changed[at : at + rng.randrange(1, 40)]
        elif kind == 3:
            changed[at:at] = rng.randbytes(rng.randrange(1, 40))
        elif kind == 4:
            changed[at:at] = changed[at : at + rng.randrange(1, 200)]
        elif len(changed) > 1:
            del changed[max(1, at) :]
    return bytes(changed)


def rewired(data: bytes, rng: random.Random) -> bytes:
    """Return a MindIR file with a valid encoding and one or two wrong values: fields changed, removed or doubled."""
    from edgellama.exporter.mindir.schema import pb

    model = pb.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2))):
        parent, field = rng.choice(fields_of(model))
        _change(parent, field, rng)
    return bytes(model.SerializeToString())


def fields_of(message: object) -> list[tuple[object, object]]:
    """Return (message, descriptor) of each field that is set, in the message and all messages inside it."""
    found: list[tuple[object, object]] = []
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        found.append((message, field))
        if field.message_type is not None:
            for inner in value if _repeated(value) else [value]:
                found += fields_of(inner)
    return found


def _repeated(value: object) -> bool:
    return hasattr(value, "add") or hasattr(value, "append")


def _change(parent: object, field: object, rng: random.Random) -> None:
    """Change one field of a message to a wrong value, clear it, or repeat or remove an item."""
    name = field.name  # type: ignore[attr-defined]
    value = getattr(parent, name)
    if _repeated(value):
        at = rng.randrange(len(value))
        kind = rng.randrange(3)
        if kind == 0:
            del value[at]
        elif field.message_type is not None:  # type: ignore[attr-defined]
            value.add().CopyFrom(value[at])
        else:
            value[at] = wrong(value[at], rng)
    elif field.message_type is not None or rng.random() < 0.2:  # type: ignore[attr-defined]
        parent.ClearField(name)  # type: ignore[attr-defined]
    elif field.enum_type is not None:  # type: ignore[attr-defined]
        setattr(parent, name, rng.choice(list(field.enum_type.values_by_number)))  # type: ignore[attr-defined]
    else:
        setattr(parent, name, wrong(value, rng))


def wrong(value: object, rng: random.Random) -> object:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((0, 1, 2, 7, value + 1, max(0, value - 1), (1 << 31) - 1))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    if isinstance(value, bytes):
        return rng.choice((b"", b"x", value + value, value[: len(value) // 2], b"../x"))
    return rng.choice(("", "x", f"{value}x", str(value)[:-1], "../" + str(value), "x" * 300))


SAME = "the artifact loads, and its logits (prefill and decode) and tokens are exactly those of the undamaged one"
CLASSES = (
    FaultClass("flipped-bits", "one bit of a file that the manifest lists, or of the manifest", SAME, 300, 60, flipped),
    FaultClass("mindir-old-hash", "a graph file mutated; the manifest keeps its hash", SAME, 600, 60, mindir(False)),
    FaultClass(
        "mindir-new-hash", "a graph file mutated, with its new hash in the manifest", SAME, 300, 60, mindir(True)
    ),
)
