"""Targets for the files that the runtime reads: JSON, manifest, weights, tokenizer, generation config, session."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgellama.artifact.json_reader import parse, parse_object
from edgellama.artifact.manifest import MANIFEST, Artifact, TensorSpec, digest, read_manifest, write_manifest
from edgellama.artifact.safetensors import CODES, DTYPES, TensorFile, encode_header
from edgellama.artifact.sizes import bytes_per_step, weights_bytes
from edgellama.conversation import session_file
from edgellama.errors import UserError
from edgellama.exporter.mindir.schema import pb
from edgellama.generation.config import GenerationConfig
from edgellama.generation.stored_settings import artifact_settings
from edgellama.mindir.check import check_graphs
from edgellama.mindir.reader import Reader
from edgellama.model import LlamaForCausalLM
from edgellama.text.tokenizer import Tokenizer
from support import toy_chat, toy_model
from support.ascend_artifact import ascend_manifest

from .target import Target, scratch

TEXTS = (
    "",
    "Hello world",
    "  two  spaces\n",
    "h\u00e9llo \U0001f600 \u4e16\u754c",
    "<s>w1</s>",
    "\0\x01 \u200b",
    "aaaa " * 20,
)


def check_json(data: bytes) -> None:
    """The one reader of JSON: what it accepts is what Python's parser reads."""
    assert parse(data) == json.loads(data.decode("utf-8-sig"))


def check_manifest(data: bytes) -> None:
    """manifest.json with a right digest: written and read again, it is the same, to the byte."""
    folder = scratch("manifest")
    try:
        values = parse_object(data)
    except ValueError:
        (folder / MANIFEST).write_bytes(data)
    else:
        values["digest"] = digest({key: value for key, value in values.items() if key != "digest"})
        (folder / MANIFEST).write_text(json.dumps(values), encoding="utf-8")
    manifest = read_manifest(folder)
    write_manifest(folder, manifest)
    written = (folder / MANIFEST).read_bytes()
    assert read_manifest(folder) == manifest
    write_manifest(folder, read_manifest(folder))
    assert (folder / MANIFEST).read_bytes() == written
    assert weights_bytes(manifest) >= 0
    assert isinstance(bytes_per_step(manifest, 0, 1, 1), int)
    with contextlib.suppress(UserError):  # the files are missing
        Artifact.open(folder, check="sizes")


def check_weights(data: bytes) -> None:
    """weights.safetensors: its tensors cover the data exactly; a file with the same header is read the same."""
    path = scratch("weights") / "weights.safetensors"
    path.write_bytes(data)
    weights = TensorFile(path)
    arrays = {name: weights.array(name) for name in weights.names()}
    fillers = {name: weights.array(name) for name in weights._table if name not in arrays}
    begin = 8 + int.from_bytes(data[:8], "little")
    assert b"".join(array.tobytes() for array in (arrays | fillers).values()) or begin == len(data)
    assert sum(array.nbytes for array in (arrays | fillers).values()) == len(data) - begin
    for stretch in {f"{name.rpartition('.')[0]}.*" for name in arrays}:
        with contextlib.suppress(UserError):
            assert weights.array(stretch).nbytes <= len(data)
    specs = [
        TensorSpec(name, DTYPES[entry.dtype], entry.shape)
        for name, entry in weights._table.items()
        if entry.dtype != "BF16"
    ]
    with contextlib.suppress(UserError):
        weights.check(specs, {}, 1)
    if all(min(spec.shape, default=1) > 0 for spec in specs) and len(specs) == len(weights._table):
        path.write_bytes(encode_header(specs, weights.metadata) + data[begin:])
        again = TensorFile(path)
        assert {name: entry.shape for name, entry in again._table.items()} == {
            name: entry.shape for name, entry in weights._table.items()
        }
        assert all(CODES[spec.dtype] == again._table[spec.name].dtype for spec in specs)


def check_tokenizer(data: bytes) -> None:
    """The tokenizer's files: {file name: content}. Its bound and its bytes agree with what it encodes and decodes.

    A chat template is left out here, because it starts a process; the target `template` has it.
    """
    folder = scratch("tokenizer")
    files = _object(data)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
        if name in files and name != "chat_template.jinja":
            content = files[name]
            if isinstance(content, dict) and isinstance(content.get("chat_template"), str):
                del content["chat_template"]
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert len(ids) >= tokenizer.fewest_tokens(text) - 8, (text, ids)  # a post-processor adds or drops a few
        assert isinstance(tokenizer.decode(ids), str)
        stream = tokenizer.text_stream()
        for token in ids[:20]:
            assert isinstance(stream.push(token), str)
            assert isinstance(tokenizer.token_bytes(token), bytes)
            tokenizer.is_special_token(token)


def check_generation_config(data: bytes) -> None:
    """generation_config.json of an artifact: settings that are read again the same, and that generate() takes."""
    model = toy_words()
    path = model.artifact.file("generation_config.json")
    path.write_bytes(data)
    try:
        config = artifact_settings(model.artifact)
        values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
        assert GenerationConfig(**values) == config
        settings = dataclasses.replace(config, max_new_tokens=2, return_dict_in_generate=False)
        tokens = np.asarray(model.generate(np.array([[5, 6, 7]]), generation_config=settings))
        assert tokens.ndim == 2 and tokens.shape[0] == config.num_return_sequences
    finally:
        path.unlink()


def check_session(data: bytes) -> None:
    """A session file with a right checksum: loaded, saved and loaded again, it is the same text."""
    engine = toy_words().engine
    path = scratch("session") / "session"
    path.write_bytes(_with_checksum(data, path))
    ids, notes, _ = session_file.restore(path, engine)
    assert ids.ndim == 1 and 0 < ids.size <= engine.context
    path.unlink()
    session_file.save(path, engine, ids, notes)
    again, found, _ = session_file.restore(path, engine)
    assert again.tolist() == ids.tolist()
    assert {**found, "sha256": ""} == {**notes, "sha256": ""}  # another row may hold the same tokens


def _with_checksum(data: bytes, path: Path) -> bytes:
    """The same session with the checksum of its content, if it can be read."""
    path.write_bytes(data)
    try:
        file = TensorFile(path)
        arrays = {name: file.array(name) for name in file.names()}
    except UserError:
        return data
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = parse_object(data[8 : 8 + length])
    notes = header.setdefault("__metadata__", {})
    if "sha256" in notes:
        notes["sha256"] = session_file.checksum(notes, arrays)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@cache
def toy_words() -> LlamaForCausalLM:
    """The toy of support/toy_model.py, whose tokens are words."""
    return toy_model.load(scratch("toy"), batch=4)


@cache
def toy_letters() -> LlamaForCausalLM:
    """The toy of support/toy_chat.py, with letters as tokens and a chat template."""
    return toy_chat.toy(scratch("toy-chat"), eos_token_id=(47,))


def check_mindir(data: bytes) -> None:
    """A graph file that CANN has compiled: MindSpore's own parser reads the same nodes."""
    opened = _converted()
    path = opened.file(opened.manifest.graphs[0].file)
    path.write_bytes(data)
    check_graphs(opened)
    model = Reader(memoryview(data), unknown=True).read()
    theirs = pb.ModelProto()
    theirs.ParseFromString(data)
    ours = [node for _, graph in model.messages("graph") for _, node in graph.messages("node")]
    assert [node.text("op_type") for node in ours] == [node.op_type for node in theirs.graph.node]
    assert [node.texts("input") for node in ours] == [list(node.input) for node in theirs.graph.node]


@cache
def _converted() -> Artifact:
    """The toy of support/ascend_artifact.py, converted."""
    ascend_manifest(scratch("mindir"))
    return Artifact.open(scratch("mindir"))


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object in an input. Another input is refused here: its form is not what the target reads."""
    try:
        return parse_object(data)
    except ValueError as error:
        raise UserError(f"the input is no JSON object: {error}") from error


ARTIFACT_TARGETS = (
    Target("json", check_json, (ValueError,), "json"),
    Target("manifest", check_manifest, (UserError,), "json"),
    Target("weights", check_weights, (UserError,), "safetensors"),
    Target("mindir", check_mindir, (UserError,), "mindir", 1 << 13),
    Target("tokenizer", check_tokenizer, (UserError,), "json"),
    Target("generation_config", check_generation_config, (UserError,), "json", 1 << 12),
    Target("session", check_session, (UserError,), "safetensors"),
)
