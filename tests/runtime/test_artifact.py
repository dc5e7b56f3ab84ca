"""manifest.json: the schema, the digest, and the error for each kind of damage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgellama.artifact.manifest import (
    MANIFEST,
    Artifact,
    CacheSpec,
    FileEntry,
    Graph,
    Manifest,
    Parity,
    TensorSpec,
    file_entry,
    read_manifest,
    write_manifest,
)
from edgellama.artifact.source import Source
from edgellama.errors import UserError
from support.manifest_edits import rewrite
from support.toy_model import load, model_of


def tensors(kind: str, columns: int) -> tuple[TensorSpec, ...]:
    """Returns k_<kind>.l and v_<kind>.l of two layers, [2, 1, columns, 8]."""
    return tuple(TensorSpec(f"{x}_{kind}.{layer}", "float32", (2, 1, columns, 8)) for layer in range(2) for x in "kv")


def make(folder: Path) -> Manifest:
    """Writes a manifest with one graph file and one weight file, both with arbitrary bytes, into `folder`."""
    (folder / "graphs").mkdir(parents=True)
    (folder / "graphs" / "step.mindir").write_bytes(b"graph" * 100)
    (folder / "weights.safetensors").write_bytes(b"weights" * 100)
    graph = file_entry(folder, "graphs/step.mindir")
    manifest = Manifest(
        name="tiny",
        source=Source("tiny", "/models/tiny", None, "Apache-2.0"),
        config={"model_type": "llama", "vocab_size": 32},
        target="portable",
        opset="portable",
        weights_format="fp32",
        batch=2,
        context=64,
        buckets=(1, 16),
        graphs=(
            Graph(
                **dataclasses.asdict(graph),
                bucket=16,
                buckets=(1, 16),
                inputs=(TensorSpec("tokens", "int32", (2, 16)), *tensors("cache", 64)),
                outputs=(TensorSpec("logits", "float32", (2, 32)), *tensors("new", 16)),
            ),
        ),
        weights=file_entry(folder, "weights.safetensors"),
        cache=CacheSpec("float32", "returned", 2, (2, 1, 64, 8)),
        eos_token_id=(2, 3),
        bos_token_id=1,
        pad_token_id=None,
        tools={"edgellama": "0.1.0"},
        kernel_abi=None,
        parity=Parity(1e-5, 1e-6, 1.0, 64, "torch"),
    )
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "artifact")
    return tmp_path / "artifact"


def test_a_manifest_reads_back_as_written(tmp_path: Path) -> None:
    manifest = make(tmp_path / "a")
    make(tmp_path / "b")
    assert read_manifest(tmp_path / "a") == manifest
    assert Artifact.open(tmp_path / "a", check="always").manifest == manifest
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()


def test_sizes_follow_from_the_shapes() -> None:
    assert TensorSpec("x", "float16", (2, 3, 4)).nbytes == 48
    assert CacheSpec("float32", "returned", 3, (2, 1, 64, 8)).nbytes == 3 * 2 * (2 * 64 * 8 * 4)


def test_an_edited_manifest_is_refused(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"context": 64', '"context": 65'))
    with pytest.raises(UserError, match="edited after the export"):
        Artifact.open(folder)


def test_a_newer_format_is_refused_before_its_digest_is_looked_at(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 3'))
    with pytest.raises(UserError, match=r"format_version is 3; this runtime reads up to 2"):
        Artifact.open(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, r"unknown field surprise \(value 1\)"),
        ({"batch": ...}, r"field batch is missing; needed: a whole number"),
        ({"batch": "two"}, r"field batch is 'two'; needed: a whole number"),
        ({"batch": True}, r"field batch is True; needed: a whole number"),
        ({"batch": 0}, r"batch is 0; needed: at least 1"),
        ({"batch": 3}, r"cache.shape .* needed: 3 rows"),
        ({"context": 128}, r"cache.shape .* needed: capacity 128"),
        ({"buckets": [16, 1]}, r"buckets is \(16, 1\); needed: increasing, from 1"),
        ({"buckets": [1, 16, 32]}, r"graphs.buckets is \[1, 16\]"),
        ({"buckets": [1, 128]}, r"buckets .* at most the context, 64"),
        ({"eos_token_id": 2}, r"field eos_token_id is 2; needed: a list"),
        ({"source": {"model": "x"}}, r"field source\.origin is missing"),
        ({"cache": {"dtype": "float32", "policy": "by_magic", "layers": 2, "shape": [2, 1, 64, 8]}}, r"cache\.policy"),
        ({"weights": {"file": "../outside", "sha256": "", "bytes": 1}}, r"'\.\./outside'; needed: a path inside"),
        ({"weights": {"file": "/etc/passwd", "sha256": "", "bytes": 1}}, r"needed: a path inside"),
        ({"format_version": "1"}, r"format_version is '1'"),
    ],
)
def test_a_field_that_does_not_fit_is_named(folder: Path, changes: dict[str, object], message: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(UserError, match=message):
        Artifact.open(folder)


@pytest.mark.parametrize("name", ["graphs/step.mindir", "weights.safetensors"])
def test_a_cut_or_missing_file_is_found_by_its_size(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"bytes; manifest\.json says"):
        Artifact.open(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"missing, but .* lists it"):
        Artifact.open(folder)


def test_changed_bytes_are_found_by_their_hash(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    for check in ("once", "always"):
        with pytest.raises(UserError, match=r"weights\.safetensors: SHA-256"):
            Artifact.open(folder, check=check)
    Artifact.open(folder, check="sizes")
    graph = folder / "graphs/step.mindir"
    graph.write_bytes(b"x" + graph.read_bytes()[1:])
    with pytest.raises(UserError, match=r"step\.mindir: SHA-256"):
        Artifact.open(folder, check="sizes")  # native code parses graphs


def test_a_folder_that_is_not_an_artifact_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder"):
        Artifact.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not an exported artifact"):
        Artifact.open(tmp_path)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"not valid JSON"):
        Artifact.open(folder)
    (folder / MANIFEST).write_text("[]")
    with pytest.raises(UserError, match=r"needed: an object"):
        Artifact.open(folder)


def test_every_file_is_listed(folder: Path) -> None:
    manifest = read_manifest(folder)
    data = FileEntry("graphs/step.data", "0" * 64, 3)
    graph = dataclasses.replace(manifest.graphs[0], data=(data,))
    listed = [entry.file for entry in dataclasses.replace(manifest, graphs=(graph,)).files()]
    assert listed == ["graphs/step.mindir", "graphs/step.data", "weights.safetensors"]


def test_an_artifact_of_a_relative_path_stays_usable_after_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here" / "artifact"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder.parent)
    load(folder)
    relative = Artifact.open("artifact")
    model = model_of(relative)
    monkeypatch.chdir(tmp_path)
    assert relative.path.is_absolute()
    assert model.tokenizer.encode("w5") == [5]
    assert model.session().generate("w5", max_new_tokens=2).size == 2


def test_a_deleted_working_directory_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(UserError, match=r"no such folder|working directory"):
        Artifact.open("artifact")
