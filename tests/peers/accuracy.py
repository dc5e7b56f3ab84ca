"""KL divergence of each engine's logits from the float32 reference, on the text and windows of `evaluate`.

It covers the engines that return logits: this project's and llama.cpp. All use the same reference, tokens and formulas.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pool import Worker
from prepare import Peer

from edgellama.artifact.manifest import Artifact
from edgellama.artifact.sizes import EMBEDDING, step_weight_bytes
from edgellama.exporter.checkpoint.open import open_checkpoint
from edgellama.exporter.proof import evaluate
from edgellama.exporter.proof.float_reference import reference_model
from edgellama.text.tokenizer import Tokenizer

TOKENS = 4096


def compare(workers: dict[str, Worker], gguf: Path, artifact: Path) -> dict[str, dict[str, Any]]:
    """name -> the figures of evaluate.summary and bits_per_weight, for each engine that returns logits.

    gguf: the reference's weights. artifact: the folder whose tokenizer encodes the text.
    """
    with_logits = {name: worker for name, worker in workers.items() if worker.peer.returns_logits}
    checkpoint = open_checkpoint(gguf)
    count = sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.names())
    text = evaluate.read_text(evaluate.TEXT)
    ids = np.array(Tokenizer.from_folder(artifact).encode(text)[:TOKENS], np.int32)
    windows, first = evaluate.cut(ids, evaluate.WINDOW)
    model, _ = reference_model(checkpoint)
    scores: dict[str, list[evaluate.TokenScores]] = {name: [] for name in with_logits}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "logits.npy"
        for number, window in enumerate(windows, start=1):
            print(f"accuracy: window {number} of {len(windows)}", file=sys.stderr)
            expected = model(window, list(range(first, len(window) - 1)))
            for name, worker in with_logits.items():
                worker.ask(op="logits", tokens=[int(t) for t in window[:-1]], first=first, file=str(file))
                scores[name].append(evaluate.score(expected, np.load(file), window[first + 1 :]))
    return {
        name: {
            **evaluate.summary(evaluate.TokenScores.joined(parts)),
            "bits_per_weight": 8 * weight_bytes(with_logits[name].peer) / count,
        }
        for name, parts in scores.items()
    }


def weight_bytes(peer: Peer) -> int:
    """Bytes of the network's tensors in the engine's file, without metadata and the tokenizer."""
    if peer.engine == "ours":
        manifest = Artifact.open(peer.model).manifest
        embedding = [spec.nbytes for spec in manifest.graph_for(1).inputs if spec.name == EMBEDDING]
        tied = manifest.config.get("tie_word_embeddings", False)
        return step_weight_bytes(manifest) + (0 if tied else sum(embedding))
    from gguf import GGUFReader

    return sum(int(tensor.n_bytes) for tensor in GGUFReader(peer.files[0]).tensors)
