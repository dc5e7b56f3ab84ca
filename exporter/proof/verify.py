"""Verify an exported artifact: run it through the real runtime, and compare it with an independent reference.

Graphs for Ascend run through their ONNX twin, because the export host has no device. The runtime runs in a separate
process (run_artifact.py): MindSpore and MindSpore Lite have libraries with the same names, so one process cannot load
both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellama.artifact.manifest import Artifact, Manifest, Parity
from edgellama.engine.device_option import add_device
from edgellama.engine.weights_memory import add_weights_memory
from edgellama.errors import UserError
from edgellama.kernels.weight_format import W4_GROUPS

from ..checkpoint.base import Checkpoint
from ..checkpoint.open import opened_for
from ..opsets.ascend_weights import QUANTIZED
from ..progress import Progress
from .child import device_entry, run_in_child
from .float_reference import reference_logits
from .rounded_ascend import RoundedAscend
from .rounded_checkpoint import RoundedCheckpoint

DECODE_STEPS = 64
# The ONNX twin takes half a minute per call for 16 GB of weights. Above TWIN_BYTES, the proof covers one prompt length
# and TWIN_STEPS decode steps.
TWIN_BYTES, TWIN_STEPS = 4_000_000_000, 4
SEED = 0
# The largest allowed max |d logits| / (range of the reference's logits), by weight format. For the cpu op set, the
# reference uses the rounded weights.
TOLERANCE = {
    **{"fp32": 1e-4, "fp16": 0.02, "bf16": 0.02},
    # The kernels round the activations of a prefill to 8 bits where weights are integers. Measured: up to 0.013.
    **dict.fromkeys(("int8", "int4", "q4_0", *W4_GROUPS), 0.03),
}
# The tolerance is at least this, by cache dtype. An int16 cache holds the bits of float16 values.
CACHE_TOLERANCE = {"float32": 0.0, "int16": 0.02, "float16": 0.02, "int8": 0.05}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgellama verify`."""
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--checkpoint", help="the model that it was exported from (default: the one in the manifest)")
    add_weights_memory(parser)
    add_device(parser)
    parser.set_defaults(run=run_verify)


def run_verify(arguments: argparse.Namespace) -> None:
    """Run the command `verify`: check the hash of every file, then the logits. Raises UserError if a check fails."""
    progress = Progress()
    with progress.stage("Hashing every file"):
        artifact = Artifact.open(arguments.artifact, check="always")
    checkpoint = opened_for(artifact.manifest, arguments.checkpoint)
    where = arguments.weights_memory, arguments.device_id
    prove(artifact.path, artifact.manifest, checkpoint, progress, *where)


def prove(
    folder: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    progress: Progress,
    weights_memory: str,
    device_id: int | None = None,
) -> Parity:
    """Compare at edge - 1, edge and edge + 1 of each bucket and of the sliding window, and over 64 decode steps.

    weights_memory, device_id: as `Engine` takes them. Raises UserError if the difference exceeds TOLERANCE, or if the
    artifact does not run.
    """
    edges, prefix, steps = plan(manifest)
    tokens = sequence(manifest, max([*edges, prefix + steps]))
    positions = [n - 1 for n in edges] + [prefix + i for i in range(steps)]
    with progress.stage("Computing the reference"):
        expected, reference = reference_logits(checkpoint, tokens, positions)
    if manifest.opset == "ascend" and manifest.converted is None:
        reference += ", through the ONNX twin"
    with progress.stage(f"Running the artifact ({len(positions)} comparisons)"):
        calls = (tokens, edges, prefix, steps)
        found = run_artifact(folder, manifest, *calls, weights_memory, device_id)  # [B, positions, V]
    judged_by, weights = expected, ""
    packed = manifest.opset == "ascend" and manifest.format_version >= 2 and manifest.weights_format in QUANTIZED
    if packed or (manifest.opset == "cpu" and manifest.weights_format != "fp32"):
        weights = f" over the {manifest.weights_format} weights"
        with progress.stage(f"Computing it{weights}"):
            rounded = _rounded(folder, manifest, checkpoint, packed)
            judged_by, _ = reference_logits(rounded, tokens, positions)
    error = float(np.abs(found - expected).max())
    span = float(expected.max() - expected.min())
    agreement = float(np.mean(found.argmax(-1) == expected.argmax(-1)))
    parity = Parity(error, error / span, agreement, len(positions), reference)
    progress.console.print(
        f"max |d logits| {error:.2e} ({parity.relative:.1e} of their range), "
        f"top-1 agreement {agreement:.1%} over {len(positions)} positions, against {reference}",
        highlight=False,
    )
    limit = max(TOLERANCE[manifest.weights_format], CACHE_TOLERANCE[manifest.cache.dtype])
    # A model can be chaotic at single tokens: after one of 640 random ids, rounding SmolLM2-135M's weights to bfloat16
    # changes its logits by half their range, with every implementation. So if anything is rounded (weights,
    # activations, the cache), the worst tenth of the positions does not count.
    share = 1.0 if limit == TOLERANCE["fp32"] else 0.9
    judged = float(np.quantile(np.abs(found - judged_by).max(axis=-1), share)) / span
    if weights:
        progress.console.print(f"{judged:.1e} of their range{weights} ({share:.0%} of positions)", highlight=False)
    if not judged <= limit:
        raise UserError(
            f"the exported graph differs from {reference}{weights} by {judged:.1e} of the logits' range; "
            f"{manifest.weights_format} weights and a {manifest.cache.dtype} cache allow {limit:.0e}. "
            "This is a defect of the exporter: please report the model"
        )
    return parity


def _rounded(folder: Path, manifest: Manifest, checkpoint: Checkpoint, packed: bool) -> Checkpoint:
    """Return the checkpoint with the artifact's matrices. packed: they are constants of an Ascend target's graph."""
    if not packed:
        return RoundedCheckpoint(folder, manifest, checkpoint)
    return RoundedAscend(Artifact(folder, manifest), checkpoint)


def plan(manifest: Manifest) -> tuple[list[int], int, int]:
    """Return (prompt lengths to prefill, prompt length before decoding, decode steps), limited by the context."""
    window = manifest.config.get("sliding_window") or 0
    wanted = {n + d for n in (*manifest.buckets[1:], window) for d in (-1, 0, 1)} | {1}
    edges = sorted(n for n in wanted if 1 <= n <= manifest.context)
    prefix = min(manifest.buckets[min(1, len(manifest.buckets) - 1)] + 1, max(1, manifest.context // 2))
    if DECODE_STEPS < window < manifest.context:
        prefix = window - DECODE_STEPS // 2  # the decode steps then cross the window's edge
    steps = min(DECODE_STEPS, manifest.context - prefix)
    if manifest.opset == "ascend" and sum(entry.bytes for entry in manifest.files()) > TWIN_BYTES:
        return [n for n in edges if n <= manifest.buckets[:2][-1]][-1:], prefix, min(steps, TWIN_STEPS)
    return edges, prefix, steps


def sequence(manifest: Manifest, count: int) -> NDArray[np.int32]:
    """Return [count] random token ids; they depend only on the vocabulary's size and the count."""
    return np.random.default_rng(SEED).integers(0, manifest.config["vocab_size"], count, dtype=np.int32)


def run_artifact(
    folder: Path,
    manifest: Manifest,
    tokens: NDArray[np.int32],
    edges: list[int],
    prefix: int,
    steps: int,
    weights_memory: str,
    device_id: int | None,
) -> NDArray[np.float32]:
    """Return the artifact's logits [B, len(edges) + steps, V]. run_artifact.py computes them in a separate process."""
    with tempfile.TemporaryDirectory() as scratch:
        job, result = Path(scratch) / "job.npz", Path(scratch) / "logits.npy"
        np.savez(
            job,
            tokens=tokens,
            edges=edges,
            decode=[prefix, steps],
            manifest=json_text(manifest.to_dict()),
            weights_memory=weights_memory,
            **device_entry(device_id),
        )
        run_in_child("run_artifact", folder, job, result)
        return np.asarray(np.load(result, allow_pickle=False))


def json_text(value: object) -> str:
    """Return the JSON of a value with sorted keys, so that equal values give equal bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
