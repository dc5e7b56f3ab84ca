"""Random weights: they do not depend on how they are read, have a useful scale, and the artifact names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellama.artifact.manifest import Artifact, TensorSpec
from edgellama.artifact.sizes import cache_bytes
from edgellama.bench.fresh import measure
from edgellama.errors import UserError
from edgellama.exporter.checkpoint.folded import folded, weight_multiplier
from edgellama.exporter.checkpoint.open import open_model
from edgellama.exporter.checkpoint.presets import PRESETS
from edgellama.exporter.checkpoint.row_blocks import tensor_pieces
from edgellama.exporter.checkpoint.synthetic import GRANULE, SyntheticCheckpoint
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.network.family import POST_ATTENTION, POST_MLP
from edgellama.exporter.opsets import cpu_weights
from edgellama.exporter.proof.float_reference import _numpy
from edgellama.exporter.writing.weights_file import write_weights
from support.checkpoints import CONFIGS, DEFAULTS, byte_tokenizer, export_all
from support.child import run_child, run_cli

TINY = LlamaConfig.from_dict({**DEFAULTS, "model_type": "llama", "vocab_size": 5000, "attention_bias": True})
TABLE, NORM = "model.embed_tokens.weight", "model.norm.weight"


def test_another_seed_or_name_gives_other_weights() -> None:
    first, again, other = (SyntheticCheckpoint(TINY, seed).tensor(TABLE) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.01
    q, o = (SyntheticCheckpoint(TINY, 7).tensor(f"model.layers.0.self_attn.{x}_proj.weight") for x in "qo")
    assert abs(np.corrcoef(q.ravel(), o.ravel())[0, 1]) < 0.05
    granules = first.ravel()[: 2 * GRANULE].reshape(2, -1)
    assert abs(np.corrcoef(granules)[0, 1]) < 0.02


@given(first=st.integers(0, 4999), count=st.integers(1, 5000))
def test_any_rows_are_rows_of_the_whole(first: int, count: int) -> None:
    checkpoint = SyntheticCheckpoint(TINY, 3)
    whole = checkpoint.tensor(TABLE)
    assert whole.size > GRANULE  # otherwise no block would begin inside a granule
    np.testing.assert_array_equal(checkpoint.rows(TABLE, first, count), whole[first : first + count])


def test_every_weight_has_the_spread_it_should() -> None:
    checkpoint = SyntheticCheckpoint(TINY, 0)
    for name in checkpoint.names():
        values = checkpoint.tensor(name)
        assert values.shape == checkpoint.shape(name) and values.dtype == np.float32
        mean, deviation = 0.0, values.shape[-1] ** -0.5
        if "norm" in name:
            mean, deviation = 1.0, 0.1
        elif name.endswith(".bias"):
            deviation = 0.02
        elif "o_proj" in name or "down_proj" in name:
            deviation /= 2.0  # two layers, each with two additions to the residual stream
        assert abs(values.mean() - mean) < 0.5 * deviation
        assert deviation * 0.7 < values.std() < deviation * 1.3


@pytest.mark.parametrize("name", ["gemma3", "gemma2", "olmo2"])
def test_norms_have_the_gain_of_a_trained_network(name: str) -> None:
    """Gemma adds 1 to the stored weights. A norm after attention or MLP writes to the residual stream."""
    config = LlamaConfig.from_dict({**DEFAULTS, **CONFIGS[name], "num_hidden_layers": 8})
    checkpoint = folded(SyntheticCheckpoint(config, 0))
    after = {config.family.norms.get(place) for place in (POST_ATTENTION, POST_MLP)}
    for norm in [name for name in checkpoint.names() if name.endswith("norm.weight")]:
        weights = checkpoint.tensor(norm) / weight_multiplier(config, norm)
        gain = 0.25 if norm.split(".")[-2] in after else 1.0  # eight layers, each with two additions
        assert weights.mean() == pytest.approx(gain, rel=0.1)
        assert 0.06 < weights.std() / gain < 0.15


@pytest.mark.parametrize("name", ["plain", "gemma3"])
def test_logits_neither_vanish_nor_explode_in_a_deep_narrow_model(name: str) -> None:
    config = LlamaConfig.from_dict({"model_type": "llama", **DEFAULTS, **CONFIGS[name], "num_hidden_layers": 40})
    logits = _numpy(SyntheticCheckpoint(config, 0), np.arange(30, dtype=np.int32), list(range(30)))
    assert 0.5 < logits.std() < 2
    assert np.isfinite(logits).all()
    assert len(set(logits.argmax(-1).tolist())) > 20  # the earlier tokens have an influence


def packed_file(folder: Path, piece_bytes: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the SHA-256 of a weights file with int4 matrices and float32 vectors."""
    folder.mkdir()
    checkpoint = SyntheticCheckpoint(TINY, 0)
    monkeypatch.setattr("edgellama.exporter.checkpoint.row_blocks.PIECE_BYTES", piece_bytes)
    monkeypatch.setattr("edgellama.exporter.writing.tensor_stream.available_threads", lambda: threads)
    name = "model.layers.1.mlp.gate_up_proj.weight"
    size = cpu_weights.panel_bytes("int4", 64)
    specs = [TensorSpec(NORM, "float32", (64,)), TensorSpec(name, "uint8", (12, size))]

    def made(wanted: str) -> Any:
        if wanted == NORM:
            return tensor_pieces(wanted, checkpoint)
        return cpu_weights.weight_pieces(wanted, checkpoint, "int4")

    return write_weights(folder, "weights.safetensors", specs, made).sha256


def test_block_size_and_threads_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(1, 1), (1, 5), (20_000, 2), (1 << 25, 3)]
    hashes = {packed_file(tmp_path / str(i), *size, monkeypatch) for i, size in enumerate(sizes)}
    assert len(hashes) == 1


def config_folder(folder: Path, tokenizer: bool) -> Path:
    """Writes a folder with a config.json and without weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**DEFAULTS, "model_type": "llama"}))
    if tokenizer:
        byte_tokenizer(264).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An artifact for each target from a config.json alone, and one with a tokenizer; the export verifies each."""
    scratch = tmp_path_factory.mktemp("synthetic")
    plain, texts = config_folder(scratch / "Plain", False), config_folder(scratch / "texts", True)
    sizes = {"context": 64, "buckets": [8], "synthetic": True, "seed": 5}
    jobs = {
        "int4": {"model": plain, "weights": "int4"},
        "int8": {"model": plain, "weights": "int8", "cache": "int8"},
        "fp32": {"model": texts, "weights": "fp32", "cache": "int8", "tokenizer": "none"},
        "portable": {"model": plain, "target": "portable"},
        "texts": {"model": texts, "weights": "bf16"},
    }
    return dict(
        zip(jobs, export_all([{"out": scratch / f"{k}-artifact", **j, **sizes} for k, j in jobs.items()]), strict=True)
    )


def test_the_manifest_says_what_the_weights_are(artifacts: dict[str, Path]) -> None:
    for path in artifacts.values():
        manifest = Artifact.open(path, check="always").manifest
        assert manifest.source.seed == 5
        assert manifest.source.origin == "synthetic: random weights, seed 5"
        assert manifest.name in ("plain-synthetic", "texts-synthetic")
        assert manifest.parity is not None and manifest.parity.steps > 50


def test_without_a_tokenizer_ids_generate_and_text_is_refused(artifacts: dict[str, Path]) -> None:
    done = run_cli("generate", str(artifacts["int4"]), "--prompt", "hello")
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no tokenizer (tokenizer.json), so it takes and gives token ids, not text" in done.stderr
    assert "Traceback" not in done.stderr
    options = ["--prompt-lengths", "8", "--depths", "16", "--repeats", "1", "--steps", "2", "--json", "-"]
    done = run_cli("bench", str(artifacts["int4"]), *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["loop"] is None
    assert report["output"]["new_tokens"] > 0


def test_a_folders_tokenizer_is_left_out_on_request(artifacts: dict[str, Path]) -> None:
    assert not (artifacts["fp32"] / "tokenizer.json").exists()
    assert (artifacts["fp32"] / "generation_config.json").exists()
    done = run_cli("generate", str(artifacts["fp32"]), "--prompt", "hello")
    assert (done.returncode, done.stdout) == (2, "")
    assert "token ids, not text; artifacts of random weights (SYNTHETIC=1) and of TOKENIZER=none" in done.stderr


def test_a_folders_tokenizer_is_kept(artifacts: dict[str, Path]) -> None:
    done = run_cli("generate", str(artifacts["texts"]), "--prompt", "hello", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr


def test_a_long_contexts_cache_takes_memory_as_it_is_filled(tmp_path: Path) -> None:
    """The int8 cache and its scales have 1.1 GB; 100 tokens fill half a megabyte of them."""
    folder = config_folder(tmp_path / "long", False)
    sizes = {"num_key_value_heads": 8, "num_attention_heads": 8, "head_dim": 32, "max_position_embeddings": 1 << 20}
    (folder / "config.json").write_text(json.dumps({**DEFAULTS, "model_type": "llama", **sizes}))
    job = {"model": folder, "synthetic": True, "cache": "int8", "context": 1 << 20, "buckets": [32], "verify": False}
    (long,) = export_all([{**job, "out": tmp_path / "out"}])
    (short,) = export_all([{**job, "context": 256, "out": tmp_path / "short"}])
    assert cache_bytes(Artifact.open(long).manifest) > 1e9
    peaks = [
        measure(artifact, threads=1, weights_memory="copy", tokens=100)["peak_bytes"] for artifact in (long, short)
    ]
    assert None not in peaks
    tables = (1 << 20) * 32 * 4  # the rotary tables cos and sin, of which only the used rows are read
    assert peaks[0] - peaks[1] < tables + 20e6, peaks


def test_verify_makes_the_same_weights_again(artifacts: dict[str, Path]) -> None:
    run_child("-m", "edgellama", "verify", str(artifacts["int8"]))


def test_a_model_without_a_config_is_refused(tmp_path: Path) -> None:
    for model in ("someone/their-llama", str(tmp_path), str(tmp_path / "x.gguf")):
        with pytest.raises(UserError, match=r"need a config: MODEL .* is neither a preset nor a folder with a config"):
            open_model(model, 0)


def test_presets_need_no_download() -> None:
    for name, preset in PRESETS.items():
        source, checkpoint = open_model(name.upper(), 1)
        assert (source.name, checkpoint.config) == (f"{name}-synthetic", preset.config)
        assert set(checkpoint.tokenizer_files()) == {"generation_config.json"}
