"""Mutates manifests and weight tables with a fixed seed: each is refused with a UserError, or equals the original."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.artifact.manifest import MANIFEST, Artifact, TensorSpec, digest
from edgellama.artifact.safetensors import ALIGNMENT, MappedWeights
from edgellama.backend.layer_tensors import layer_tensors
from edgellama.engine.engine import Engine
from edgellama.errors import UserError
from edgellama.exporter.writing.weights_file import write_weights
from support.tiny import InPlaceGraph, in_place_manifest

MUTATIONS = 300
CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_size": 32, "intermediate_size": 48}
ODD = (
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    1 << 31,
    1 << 63,
    -(1 << 70),
    1.5,
    1e300,
    "",
    "x",
    "../x",
    "a\0b",
    [],
    [1],
    {},
    {"a": 1},
)
INSERTED = (b"[" * 100_000, b'{"a":' * 2000, b"\xff\xfe", b"NaN", b"1e999", b"9" * 5000, b'"\\ud800"')


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the path of every value within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def mutated(value: Any, rng: random.Random) -> Any:
    """Returns a copy with one value replaced, removed, renamed, doubled or moved."""
    changed = copy.deepcopy(value)
    path = rng.choice(places(changed)[1:])
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    key, old = path[-1], parent[path[-1]]
    kind = rng.randrange(5)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(old, int) and not isinstance(old, bool):
        parent[key] = old + rng.choice((-64, -1, 1, 64, 1 << 20))
    elif kind == 2 and isinstance(parent, list):
        parent.insert(0, copy.deepcopy(rng.choice(parent)))
    elif kind == 3 and isinstance(parent, dict):
        parent[rng.choice([*parent, "other", "x" * 3000])] = parent.pop(key)
    else:
        parent[key] = copy.deepcopy(rng.choice(ODD))
    return changed


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "toy"
    in_place_manifest(folder, batch=2)
    return folder


def load(folder: Path, toy: Path) -> Engine:
    """Loads an artifact whose graph files are those of `toy`."""
    graphs = {graph.file: graph for graph in Artifact.open(toy).manifest.graphs}
    return Engine(Artifact.open(folder), build=lambda path: InPlaceGraph(graphs[path.name]))


def outcome(run: Callable[[], Any]) -> Any:
    """Returns the result of `run`, or the text of its UserError, which must be one clear line."""
    try:
        return run()
    except UserError as error:
        assert 10 < len(str(error)) < 1500 and "\n" not in str(error), error
        return str(error)


def test_mutated_manifests_are_refused_or_load_the_same_network(toy: Path, tmp_path: Path) -> None:
    """The digests are recomputed. Fields that only describe (name, source, tools, parity) may change."""
    folder = shutil.copytree(toy, tmp_path / "x")
    good = json.loads((toy / MANIFEST).read_text())
    good.pop("digest")
    tokens, zero, length = np.array([[3, 4], [5, 6]]), np.zeros(2, np.int64), np.full(2, 2)
    expected = load(toy, toy).forward(tokens, zero, length)
    rng, refused = random.Random(11), 0
    for _ in range(MUTATIONS):
        values = mutated(good, rng)
        text = json.dumps({**values, "digest": digest(values)}) if isinstance(values, dict) else json.dumps(values)
        (folder / MANIFEST).write_text(text)
        found = outcome(lambda: load(folder, toy))
        if isinstance(found, str):
            refused += 1
        else:
            assert found.forward(tokens, zero, length).tolist() == expected.tolist(), values
    assert refused > MUTATIONS / 2


def test_damaged_bytes_of_a_manifest_are_refused(toy: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy, tmp_path / "x")
    good = (toy / MANIFEST).read_bytes()
    rng = random.Random(12)
    for _ in range(MUTATIONS):
        data = bytearray(good)
        at = rng.randrange(len(data))
        if rng.random() < 0.5:
            data[at] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.5:
            del data[at : at + rng.randrange(1, 50)]
        else:
            data[at:at] = rng.choice(INSERTED)
        (folder / MANIFEST).write_bytes(data)
        found = outcome(lambda: Artifact.open(folder).manifest)
        assert isinstance(found, str) or found == Artifact.open(toy).manifest


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TensorSpec], dict[str, list[TensorSpec]]]:
    """A weights file with two layers as the kernels read them, the inputs of its graphs, and the layers' tensors."""
    folder = tmp_path_factory.mktemp("weights")
    layers = {f"model.layers.{i}.*": layer_tensors(CONFIG, "int8", f"model.layers.{i}.", ()) for i in range(2)}
    norm = TensorSpec("model.norm.weight", "float32", (32,))
    stored = [tensor for tensors in layers.values() for tensor in tensors] + [norm]
    value = {x.name: np.full(x.shape, i, x.dtype) for i, x in enumerate(stored)}
    write_weights(folder, "w", stored, lambda name: [lambda: value[name]])
    whole = MappedWeights(folder / "w")
    inputs = [TensorSpec(name, "uint8", whole.array(name).shape) for name in layers]
    whole.check([*inputs, norm], layers, ALIGNMENT)
    return folder / "w", [*inputs, norm], layers


def with_header(path: Path, header: bytes, data: bytes) -> Path:
    padded = header + b" " * (-(8 + len(header)) % 64)
    path.write_bytes(len(padded).to_bytes(8, "little") + padded + data)
    return path


def test_mutated_weight_tables_are_refused_or_give_the_same_tensors(
    layered: tuple[Path, list[TensorSpec], dict[str, list[TensorSpec]]], tmp_path: Path
) -> None:
    path, inputs, layers = layered
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8:start]), whole[start:]
    rng, refused = random.Random(13), 0
    good = MappedWeights(path)

    def check() -> MappedWeights:
        weights = MappedWeights(tmp_path / "w")
        weights.check(inputs, layers, ALIGNMENT)
        return weights

    for _ in range(MUTATIONS):
        with_header(tmp_path / "w", json.dumps(mutated(header, rng)).encode(), data)
        found = outcome(check)
        refused += isinstance(found, str)
        if not isinstance(found, str):
            for spec in inputs:
                np.testing.assert_array_equal(found.array(spec.name), good.array(spec.name))
    assert refused > 0.9 * MUTATIONS
    for _ in range(MUTATIONS):
        damaged = bytearray(whole[: start + rng.choice((-1, 0, 8, len(data), len(data), len(data)))])
        damaged[rng.randrange(8 if rng.random() < 0.2 else start)] ^= 1 << rng.randrange(8)
        (tmp_path / "w").write_bytes(damaged)
        found = outcome(check)
        if not isinstance(found, str):
            for spec in inputs:
                np.testing.assert_array_equal(found.array(spec.name), good.array(spec.name))


def swap(header: dict[str, Any], first: str, second: str) -> None:
    header[first], header[second] = header[second], header[first]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["model.norm.weight"].update(data_offsets=[0, 128]), "overlaps the one before"),
        (lambda h: h.pop("model.norm.weight"), "bytes follow its last tensor"),
        (lambda h: h["model.norm.weight"].update(data_offsets=[-128, 0]), r"data_offsets \[-128, 0\]"),
        (lambda h: h["model.norm.weight"].update(shape=[33]), r"128 bytes; F32 \[33\] has 132"),
        (lambda h: h["model.norm.weight"].update(shape=[1 << 61, 1 << 61, 0]), "shape|bytes"),
        (lambda h: h["model.norm.weight"].update(dtype="I32"), r"is int32 \[32\]; the graph takes float32"),
        (lambda h: h.update(other=h.pop("model.norm.weight")), "has no tensor 'model.norm.weight'"),
        (
            lambda h: swap(
                h, "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"
            ),
            "where the kernel reads",
        ),
        (
            lambda h: swap(h, "model.layers.0.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.weight"),
            "contiguous|where the kernel reads",
        ),
        (lambda h: h.update({"model.layers.0.more": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}), "reads"),
        (lambda h: h.update(__metadata__=[]), "__metadata__"),
    ],
)
def test_each_fault_of_a_weights_table_has_its_message(
    layered: tuple[Path, list[TensorSpec], dict[str, list[TensorSpec]]],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    path, inputs, layers = layered
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    change(header)
    with_header(tmp_path / "w", json.dumps(header).encode(), whole[start:])
    with pytest.raises(UserError, match=message):
        MappedWeights(tmp_path / "w").check(inputs, layers, ALIGNMENT)


def test_bytes_behind_the_last_tensor_and_a_misplaced_start_are_refused(
    layered: tuple[Path, list[TensorSpec], dict[str, list[TensorSpec]]], tmp_path: Path
) -> None:
    path, inputs, layers = layered
    whole = path.read_bytes()
    (tmp_path / "w").write_bytes(whole + b"x")
    with pytest.raises(UserError, match="1 bytes follow its last tensor"):
        MappedWeights(tmp_path / "w")
    start = 8 + int.from_bytes(whole[:8], "little")
    (tmp_path / "w").write_bytes((start - 8 + 8).to_bytes(8, "little") + whole[8:start] + b" " * 8 + whole[start:])
    with pytest.raises(UserError, match="needed: a multiple of 64"):
        MappedWeights(tmp_path / "w").check(inputs, layers, ALIGNMENT)
