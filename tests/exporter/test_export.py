"""Export end to end: small random checkpoints compared with transformers, verification, bad options, failures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.__main__ import main
from edgellama.artifact.manifest import Artifact, file_entry, write_manifest
from edgellama.errors import UserError
from support.checkpoints import CONFIGS, DEFAULTS
from support.child import run_child
from support.step_runs import BATCH, BUCKETS, CONTEXT, expected, relative_error

TOLERANCE = 1e-4  # of the range of the reference's logits
SMALL = ["--target", "portable", "--context", "32", "--buckets", "8"]


@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_and_decode_agree_with_transformers(
    name: str, tiny_checkpoint: Callable[..., Path], lite_logits: dict[str, np.ndarray]
) -> None:
    wanted = expected(tiny_checkpoint(**CONFIGS[name]))
    assert np.ptp(wanted) > 1
    assert relative_error(lite_logits[name], wanted) < TOLERANCE


def test_the_configs_differ_where_they_should(lite_logits: dict[str, np.ndarray]) -> None:
    """The same weights with another rope give other logits, so the test above can distinguish the kinds."""
    plain = lite_logits["plain"]
    assert relative_error(lite_logits["dynamic"], plain) > TOLERANCE  # it has another number of key/value heads
    for name in ("linear", "yarn-mscale"):
        assert relative_error(lite_logits[name], plain) > 100 * TOLERANCE, name


def test_an_artifact_carries_its_proof(tiny_artifact: Path) -> None:
    parity = Artifact.open(tiny_artifact, check="always").manifest.parity
    assert parity is not None
    assert parity.relative < TOLERANCE
    assert parity.reference == "transformers float32"
    assert parity.steps > 40


def test_verify_accepts_what_export_wrote(tiny_artifact: Path) -> None:
    assert main(["verify", str(tiny_artifact)]) == 0


def test_verify_catches_a_changed_weight(tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The hash shows a changed byte; the logits show a wrong weight whose hashes were updated."""
    copy = Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))
    manifest = Artifact.open(copy).manifest
    graph = manifest.graphs[0]
    data = graph.data[0].file
    weights = np.memmap(copy / data, np.float32, mode="r+")
    weights[len(weights) // 2] += 0.5
    weights.flush()
    assert main(["verify", str(copy)]) == 2
    assert f"{copy / data}: SHA-256" in capsys.readouterr().err

    entry = file_entry(copy, data)
    graph = dataclasses.replace(graph, data=(entry,))
    write_manifest(copy, dataclasses.replace(manifest, graphs=(graph,)))
    assert main(["verify", str(copy)]) == 2
    assert "of the logits' range; fp32 weights and a float32 cache allow 1e-04" in capsys.readouterr().err


def test_verify_refuses_another_checkpoint(
    tiny_artifact: Path, tiny_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    other = tiny_checkpoint(**CONFIGS["tied-1to1"])
    assert main(["verify", str(tiny_artifact), "--checkpoint", str(other)]) == 2
    assert "is another model than" in capsys.readouterr().err


# Runs `main` for each job in one child process and prints the results.
RUN = """
import contextlib, io, json, os, shutil, sys
from pathlib import Path
from types import SimpleNamespace
from edgellama.exporter.proof import verify
from edgellama.__main__ import main

def interrupt(*_): raise KeyboardInterrupt
def kill(*_): os._exit(9)

results = []
for job in json.loads(sys.argv[1]):
    prove, limit = verify.prove, dict(verify.TOLERANCE)
    if job.get("prove"):
        verify.prove = {"interrupt": interrupt, "kill": kill}[job["prove"]]
    verify.TOLERANCE.update(job.get("tolerance", {}))
    usage = shutil.disk_usage
    if "free" in job:
        shutil.disk_usage = lambda path: SimpleNamespace(free=job["free"])
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        status = main(job["argv"])
    verify.prove, shutil.disk_usage = prove, usage
    verify.TOLERANCE.update(limit)
    results.append([status, err.getvalue()])
print(json.dumps(results))
"""


def run_exporter(*jobs: dict[str, Any]) -> list[tuple[int, str]]:
    """Returns (exit status, standard error) of the exporter's command line for each job.

    A job has the keys `argv`, `prove` (replaces the verification) and `free` (free bytes on the disk).
    """
    done = run_child("-c", RUN, json.dumps(jobs), status=None)
    assert done.returncode in (0, 9), done.stderr
    return [] if done.returncode else [tuple(r) for r in json.loads(done.stdout.splitlines()[-1])]


BAD_OPTIONS = {
    "CONTEXT is 129; this model's positions go to 128": ["--context", "129"],
    "CONTEXT is 0;": ["--context", "0"],
    "CONTEXT is -1;": ["--context", "-1"],
    "BUCKETS holds 64; a bucket has 1 to 32 tokens": ["--context", "32", "--buckets", "8,64"],
    "BUCKETS holds 0;": ["--buckets", "0,8"],
    "BATCH is 0; an artifact has at least 1 row": ["--batch", "0"],
    "TARGET 'tpu' is unknown; choose from": ["--target", "tpu"],
    "WEIGHTS 'int3' with TARGET portable; choose from fp32": ["--weights", "int3", "--target", "portable"],
    "CACHE 'int3' with TARGET portable; choose from float32": ["--cache", "int3", "--target", "portable"],
}


def test_bad_options_are_one_line_and_leave_nothing(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model, out = str(tiny_checkpoint()), str(tmp_path / "out" / "x")
    jobs = [{"argv": ["export", model, "--out", out, *options]} for options in BAD_OPTIONS.values()]
    for (status, error), words in zip(run_exporter(*jobs), BAD_OPTIONS, strict=True):
        assert status == 2
        assert error.startswith("error: ") and error.count("\n") == 1
        assert words in error
    assert list(tmp_path.iterdir()) == []


LARGE = {  # in a table, in a cache
    "model.embed_tokens.weight would have 2,293,760,000 elements (uint8)": {"vocab_size": 70_000, "hidden_size": 8192},
    "k_cache.0 would have 2,147,483,680 elements (int16)": {"max_position_embeddings": 1 << 30},
}


def test_tensors_that_mindspore_lite_cannot_count_are_refused(tmp_path: Path) -> None:
    """The error names a setting that passes: bfloat16 tables, a shorter context."""
    jobs = []
    for words, change in LARGE.items():
        folder = tmp_path / str(len(jobs))
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**DEFAULTS, "model_type": "llama", **change}))
        cache = "_cache" in words
        options = ["--cache", "float16", "--context", str((1 << 26) + 1)] if cache else ["--weights", "fp32"]
        argv = ["export", str(folder), "--synthetic", "--out", str(tmp_path / "x"), "--buckets", "8", *options]
        jobs.append({"argv": argv, "free": 0})
        remedy = ["--context", "64"] if cache else ["--weights", "bf16", "--cache", "float32"]
        jobs.append({"argv": [*argv, *remedy], "free": 0})
    results = run_exporter(*jobs)
    for words, (status, why), (_, passed) in zip(LARGE, results[::2], results[1::2], strict=True):
        assert status == 2
        assert words in why and "takes fewer than 2,147,483,648 in one tensor" in why
        assert "GB free" in passed  # the next check


def test_buckets_that_are_no_numbers(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", "smollm2-135m-instruct", "--buckets", "32;128"])
    assert stopped.value.code == 2
    assert "'32;128' is not a list of whole numbers" in capsys.readouterr().err


def test_a_failed_or_interrupted_export_leaves_nothing(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    argv = ["export", str(tiny_checkpoint()), "--out", str(tmp_path / "x"), *SMALL]
    (failed, why), (interrupted, _) = run_exporter(
        {"argv": argv, "tolerance": {"fp32": 0.0}}, {"argv": argv, "prove": "interrupt"}
    )
    assert (failed, interrupted) == (2, 130)
    assert "the exported graph differs from transformers float32" in why
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--target", "portable"], ["--weights", "int4"]], ids=" ".join)
def test_the_disk_must_hold_the_weights_in_their_own_format(
    options: list[str], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    argv = ["export", str(tiny_checkpoint()), "--out", str(tmp_path / "x"), "--context", "32", "--no-verify", *options]
    assert run_exporter({"argv": argv})[0][0] == 0
    manifest = Artifact.open(tmp_path / "x").manifest
    (entry,) = (manifest.weights,) if manifest.weights else manifest.graphs[0].data
    (short, why), (enough, _) = run_exporter(
        {"argv": argv, "free": entry.bytes // 2}, {"argv": argv, "free": entry.bytes}
    )
    assert (short, enough) == (2, 0)
    assert f"{tmp_path} has 0.0 GB free; the weights need 0.0 GB. Choose a folder on another disk: OUT=" in why


def test_an_old_artifact_stays_until_the_new_one_is_complete(
    tiny_checkpoint: Callable[..., Path], config_artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """A killed export leaves nothing that can be loaded, and the next export deletes its files."""
    out = Path(shutil.copytree(config_artifacts["plain"], tmp_path / "x"))
    argv = ["export", str(tiny_checkpoint()), "--out", str(out), *SMALL]
    assert run_exporter({"argv": argv, "prove": "kill"}) == []
    assert Artifact.open(out, check="always").manifest.batch == 2
    (partial,) = tmp_path.glob(".x.edgellama-*.partial")
    with pytest.raises(UserError, match="not an exported artifact"):
        Artifact.open(partial)

    assert run_exporter({"argv": [*argv, "--no-verify"]})[0][0] == 0
    assert Artifact.open(out, check="always").manifest.batch == 1
    assert list(tmp_path.iterdir()) == [out]


def test_same_inputs_same_bytes(
    tiny_checkpoint: Callable[..., Path], config_artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """Two processes export at different times into different folders."""
    sizes = {"context": CONTEXT, "batch": BATCH, "buckets": ",".join(map(str, BUCKETS[1:]))}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    argv = ["export", str(tiny_checkpoint()), "--target", "portable", "--out", str(tmp_path / "x"), "--no-verify"]
    assert run_exporter({"argv": [*argv, *options]})[0][0] == 0
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (config_artifacts["plain"], tmp_path / "x")
    ]
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []


TRACE = """
import re
from edgellama.exporter import trace
from edgellama.exporter.mindir import lower as mindir
from edgellama.exporter.graph_spec import Shape
from edgellama.exporter.opsets import portable
from edgellama.exporter.checkpoint.presets import PRESETS
config, shape = PRESETS["llama3-8b"].config, Shape(1, 512, 2048)
inputs = portable.SPEC.inputs(config, shape)
model = mindir.lower(trace.trace(config, shape, portable), inputs)
status = open("/proc/self/status").read()  # getrusage would count what the process that started this one had
print(len(model.graph.parameter), re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
"""


@pytest.mark.slow
def test_tracing_llama3_8b_needs_no_weights_in_memory() -> None:
    """The float32 weights would have 32 GB; the process that traces the largest bucket stays below 1.5 GB."""
    parameters, peak_kib = map(int, run_child("-c", TRACE).stdout.split()[-2:])
    assert parameters == 3 + 32 * 9 + 2
    assert peak_kib * 1024 < 1.5e9
