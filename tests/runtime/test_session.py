"""Sessions: texts that grow, and the files that store them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from edgellama.artifact.manifest import Artifact
from edgellama.conversation.session_file import checksum
from edgellama.engine.engine import Engine
from edgellama.errors import UserError
from edgellama.model import LlamaForCausalLM
from support.tiny import DIM, GROUPS, LAYERS, InPlaceGraph, in_place_manifest
from support.toy_model import computed, continuation, load

LONG = [5, 6, 7, 8, 9, 10, 11, 12]


def toy(folder: Path, batch: int = 1, **changes: Any) -> LlamaForCausalLM:
    folder.mkdir()
    return load(folder, batch=batch, eos_token_id=(), **changes)


@pytest.fixture
def model(tmp_path: Path) -> LlamaForCausalLM:
    return toy(tmp_path / "toy")


def test_a_session_grows_by_the_prompt_and_the_generated_tokens(model: LlamaForCausalLM) -> None:
    session = model.session()
    first = session.generate(LONG, max_new_tokens=3).tolist()
    assert session.ids == [*LONG, *first]
    text = [*session.ids, 20, 21]
    assert computed(model, lambda: session.generate([20, 21], max_new_tokens=4)) == [[3], [1], [1], [1]]
    assert session.ids == text + continuation(text, 4)


def test_text_is_encoded_and_a_bos_comes_once(model: LlamaForCausalLM) -> None:
    from tokenizers import pre_tokenizers, processors

    tokenizer = model.tokenizer.model
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("w1 $A", special_tokens=[("w1", 1)])
    session = model.session()
    session.generate("w5 w6", max_new_tokens=1)
    session.generate("w7", max_new_tokens=1)
    assert [session.ids[i] for i in (0, 1, 2, 4)] == [1, 5, 6, 7]


def test_a_prompt_that_does_not_fit_leaves_the_session_unchanged(model: LlamaForCausalLM) -> None:
    session = model.session()
    session.generate(LONG, max_new_tokens=1)
    before = list(session.ids)
    with pytest.raises(UserError, match="prompt has 69 tokens"):
        session.stream([7] * 60)
    with pytest.raises(UserError, match="id 99"):
        session.stream([99])
    assert session.ids == before


def test_an_interrupted_stream_leaves_the_pieces_seen(model: LlamaForCausalLM) -> None:
    session = model.session()
    with session.stream(LONG, max_new_tokens=9) as stream:
        next(stream)
        next(stream)
    assert session.ids == LONG + continuation(LONG, 2)
    assert session.generate([3], max_new_tokens=2).tolist() == continuation([*LONG, *continuation(LONG, 2), 3], 2)


def test_a_restored_session_computes_only_what_is_new(model: LlamaForCausalLM, tmp_path: Path) -> None:
    session = model.session()
    session.generate(LONG, max_new_tokens=3)
    session.save(tmp_path / "fox.session")
    again = toy(tmp_path / "other").session(tmp_path / "fox.session")
    assert again.ids == session.ids and again.model is not model
    text = [*again.ids, 20]
    assert computed(again.model, lambda: again.generate([20], max_new_tokens=4))[0] == [1]
    assert again.ids == text + continuation(text, 4)


def test_the_file_is_safetensors_with_the_positions_in_use_only(model: LlamaForCausalLM, tmp_path: Path) -> None:
    session = model.session()
    session.generate(LONG, max_new_tokens=3)
    session.save(tmp_path / "s", {"title": "Fox"})
    tensors = load_file(tmp_path / "s")
    assert tensors.pop("tokens").tolist() == session.ids
    assert {array.shape for array in tensors.values()} == {(GROUPS, 11, DIM)} and len(tensors) == 2 * LAYERS
    # including the last token, which the engine had not read
    assert all(array.any(axis=(0, 2)).all() for array in tensors.values())
    with safe_open(tmp_path / "s", "np") as file:
        assert file.metadata()["title"] == "Fox"
        assert file.metadata()["artifact"] == model.artifact.manifest.to_dict()["digest"]


def test_saving_computes_what_other_texts_have_displaced(model: LlamaForCausalLM, tmp_path: Path) -> None:
    session = model.session()
    session.generate(LONG, max_new_tokens=3)
    model.generate([30, 31, 32], max_new_tokens=2)
    session.save(tmp_path / "s")
    longer = [*session.ids, 9, 9]
    model.generate([longer], max_new_tokens=2)
    session.save(tmp_path / "t")  # the row holds a longer text
    for name in "st":
        again = model.session(tmp_path / name)
        assert again.ids == session.ids
        assert again.generate([20], max_new_tokens=4).tolist() == continuation([*session.ids, 20], 4)


def more(model: LlamaForCausalLM, text: list[int]) -> None:
    model.generate([text], max_new_tokens=1, reuse_prefix=True)


def test_a_session_takes_a_row_that_no_other_text_uses(tmp_path: Path) -> None:
    model = toy(tmp_path / "toy", batch=2)
    session = model.session()
    session.generate(LONG, max_new_tokens=1)
    session.save(tmp_path / "s")
    model.forget()
    model.generate([30, 31, 32], max_new_tokens=1)
    session = model.session(tmp_path / "s")
    assert [sum(row) for row in computed(model, lambda: session.generate([3], max_new_tokens=1))] == [1]
    assert [sum(row) for row in computed(model, lambda: more(model, [30, 31, 32, 33]))] == [1]


def test_in_place_caches_with_half_precision_go_through_a_file(tmp_path: Path) -> None:
    in_place_manifest(tmp_path / "toy", batch=2)
    opened = Artifact.open(tmp_path / "toy")
    tokenizer = toy(tmp_path / "words").artifact.file("tokenizer.json")
    tokenizer.rename(opened.file("tokenizer.json"))

    def fresh() -> LlamaForCausalLM:
        return LlamaForCausalLM(opened, Engine(opened, build=lambda path: InPlaceGraph(graphs[path.name])))

    graphs = {graph.file: graph for graph in opened.manifest.graphs}
    model = fresh()
    (expected,) = model.generate([[*LONG, 3]], max_new_tokens=6)
    session = fresh().session()
    session.generate(LONG, max_new_tokens=1)
    session.ids.pop()
    session.save(tmp_path / "s")
    assert fresh().session(tmp_path / "s").generate([3], max_new_tokens=6).tolist() == expected[9:].tolist()
    # MindSpore Lite gets float16 as int16; the file says float16
    engine = model.engine
    engine.cache.arrays = {name: a.astype(np.float16).view(np.int16) for name, a in engine.cache.arrays.items()}
    engine.prefixes.forget()
    engine.prefixes.fill(
        np.array(LONG), {n: np.ones((GROUPS, 8, DIM), np.float16).view("i2") for n in engine.cache.arrays}
    )
    halves = model.session()
    halves.ids = list(LONG)
    halves.save(tmp_path / "h")
    assert load_file(tmp_path / "h")["k_cache.0"].dtype == np.float16
    engine.prefixes.forget()
    halves.load(tmp_path / "h")
    row = int(engine.prefixes.length.argmax())
    assert (engine.cache.arrays["v_cache.1"][row, :, :8].view(np.float16) == 1).all()


def test_a_session_that_cannot_be_restored_is_refused_and_changes_nothing(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    session = model.session()
    session.generate(LONG, max_new_tokens=3)
    good = tmp_path / "good"
    session.save(good)
    data = good.read_bytes()
    tensors = load_file(good)
    with safe_open(good, "np") as file:
        notes = file.metadata()
    bad = tmp_path / "bad"

    def write(tensors: dict[str, np.ndarray], notes: dict[str, str]) -> None:
        save_file(tensors, bad, {**notes, "sha256": checksum(notes, tensors)})

    before = list(session.ids)

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            session.load(bad)
        assert session.ids == before
        assert computed(model, lambda: more(model, before)) == [[1]]

    refused("no such file")
    bad.write_bytes(b"")
    refused("0 bytes. Load another file")
    bad.write_bytes(b"not a session at all")
    refused("not valid JSON")
    header = json.dumps([]).encode()
    bad.write_bytes(len(header).to_bytes(8, "little") + header)
    refused("a JSON list")
    bad.write_bytes(data[:-100])
    refused("ends outside the file")
    save_file(tensors, bad)
    refused("format is None; needed: 'edgellama session 2'")
    save_file(tensors, bad, {"format": "edgellama session 1", "artifact": notes["artifact"]})
    refused("of release 0.1.0, which stored no checksum; needed: 'edgellama session 2'. Begin a new session")
    write(tensors, {**notes, "artifact": "0" * 64})
    refused("digest 000000000000; this one, toy, has")
    write({**tensors, "tokens": np.full(11, 50, np.int32)}, notes)
    refused("not a text of this artifact")
    write({**tensors, "tokens": np.arange(12, dtype=np.int32)}, notes)
    refused(r"k_cache.0 has shape \(2, 11, 4\); needed: \(2, 12, 4\)")
    write({name: array for name, array in tensors.items() if name != "v_cache.1"}, notes)
    refused("no tensor 'v_cache.1'")
    size = int.from_bytes(data[:8], "little")
    bad.write_bytes(data[:8] + data[8 : 8 + size].replace(b'"I32"', b'"X32"') + data[8 + size :])
    refused("has no valid entry for 'tokens'")


def test_every_damaged_byte_is_found(model: LlamaForCausalLM, tmp_path: Path) -> None:
    session = model.session()
    session.generate(LONG, max_new_tokens=3)
    session.save(tmp_path / "s", {"title": "Fox"})
    data = (tmp_path / "s").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    title = data.index(b"Fox")
    for place in [title, *range(end, len(data), 7), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 1
        (tmp_path / "s").write_bytes(damaged)
        with pytest.raises(UserError, match=r"is damaged: its content has the SHA-256 .*begin a new session"):
            model.session(tmp_path / "s")
    (tmp_path / "s").write_bytes(data)
    assert model.session(tmp_path / "s").ids == session.ids


def test_another_artifacts_session_is_refused(model: LlamaForCausalLM, tmp_path: Path) -> None:
    session = model.session()
    session.generate(LONG, max_new_tokens=3)
    session.save(tmp_path / "s")
    with pytest.raises(UserError, match="Load it with its own artifact"):
        toy(tmp_path / "other", context=32).session(tmp_path / "s")


def test_a_file_appears_whole_or_not_at_all(
    model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.session()
    with pytest.raises(UserError, match="nothing to save"):
        session.save(tmp_path / "s")
    session.generate(LONG, max_new_tokens=3)
    folder = tmp_path / "files"
    folder.mkdir()
    session.save(folder / "s")
    before = (folder / "s").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    session.generate([3], max_new_tokens=1)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        session.save(folder / "s")
    assert (folder / "s").read_bytes() == before and len(list(folder.iterdir())) == 1
    with pytest.raises(UserError, match="No such file or directory"):
        session.save(tmp_path / "none" / "s")
