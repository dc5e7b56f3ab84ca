"""Compare an artifact with the float32 reference on a text: perplexity, KL divergence, top-1 agreement.

The text is cut into windows; each window starts with an empty cache. A graph returns the logits of the last token only.
So the first half of a window goes through the prefill graphs, and each token of the second half is one decode step,
scored on the token that follows. The scores therefore cover both paths, with at least half a window of context.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellama.artifact.manifest import Artifact
from edgellama.engine.device_option import add_device
from edgellama.engine.weights_memory import add_weights_memory
from edgellama.errors import UserError
from edgellama.text.tokenizer import Tokenizer

from ..checkpoint.base import Checkpoint
from ..checkpoint.open import opened_for
from ..progress import Progress
from .child import device_entry, run_in_child
from .float_reference import reference_model

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]

# Chapters I and II of "Alice's Adventures in Wonderland" by Lewis Carroll (1865), in the public domain everywhere:
# its author died in 1898. The book's own text of Project Gutenberg's eBook 11, 5,902 tokens of SmolLM2's tokenizer.
TEXT = Path(__file__).parent / "alice.txt"
WINDOW = 512


@dataclass(frozen=True)
class TokenScores:
    """One value per scored token, each [n] float64.

    Attributes:
        nll, reference_nll: negative log-likelihood of the next token, in nats.
        kl: KL(reference || artifact), in nats.
        agrees: 1 if both give the highest probability to the same token, else 0.
    """

    nll: NDArray[np.float64]
    reference_nll: NDArray[np.float64]
    kl: NDArray[np.float64]
    agrees: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: list[TokenScores]) -> TokenScores:
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`. Divergences are in nats.

    `_error` is the standard error of the mean over the scored tokens, for perplexities by the delta method. It assumes
    that neighbouring tokens are independent.
    """

    text: str
    reference: str
    windows: int
    window: int
    scored_tokens: int
    prefill_share: float  # share of the input tokens that went through the prefill graphs
    perplexity: float
    perplexity_error: float
    reference_perplexity: float
    kl_mean: float
    kl_error: float
    kl_p99: float
    top1_agreement: float


def cut(ids: Ids, context: int) -> tuple[Ids, int]:
    """Return (windows [n, W], the index of the first token in a window whose logits are scored).

    W is the smallest of 512, the context and the number of ids. Raises UserError if that is less than 4.
    """
    size = min(WINDOW, context, len(ids))
    if size < 4:
        raise UserError(f"{size} tokens are too few to score; needed: at least 4. Use a longer text")
    count = len(ids) // size
    return np.ascontiguousarray(ids[: count * size].reshape(count, size), np.int32), size // 2 - 1


def score(reference: Floats, found: Floats, targets: Ids) -> TokenScores:
    """Score logits. reference, found: logits [n, V]; targets [n]: the tokens that follow."""
    p, q = log_softmax(reference), log_softmax(found)
    rows = np.arange(len(targets))
    return TokenScores(
        nll=-q[rows, targets],
        reference_nll=-p[rows, targets],
        kl=np.sum(np.exp(p) * (p - q), axis=-1),
        agrees=(reference.argmax(-1) == found.argmax(-1)).astype(np.float64),
    )


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Return log(softmax(logits)) over the last axis, computed in float64."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def summary(scores: TokenScores) -> dict[str, float]:
    """Return the fields of Evaluation that depend on the scores only."""
    count = len(scores.kl)

    def error(values: NDArray[np.float64]) -> float:
        return float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")

    perplexity = float(np.exp(scores.nll.mean()))
    return {
        "perplexity": perplexity,
        "perplexity_error": perplexity * error(scores.nll),
        "reference_perplexity": float(np.exp(scores.reference_nll.mean())),
        "kl_mean": float(scores.kl.mean()),
        "kl_error": error(scores.kl),
        "kl_p99": float(np.quantile(scores.kl, 0.99)),
        "top1_agreement": float(scores.agrees.mean()),
    }


def evaluate(
    artifact: Artifact,
    checkpoint: Checkpoint,
    text: Path,
    tokens: int,
    progress: Progress,
    weights_memory: str,
    device_id: int | None = None,
) -> Evaluation:
    """Score the first `tokens` tokens of the text. The runtime runs in a separate process and uses all rows of a batch.

    weights_memory, device_id: as `Engine` takes them. Raises UserError if the text is too short or the artifact does
    not run.
    """
    ids = np.array(Tokenizer.from_folder(artifact.path).encode(read_text(text))[:tokens], np.int32)
    windows, first = cut(ids, artifact.manifest.context)
    steps = windows.shape[1] - 1 - first
    with tempfile.TemporaryDirectory() as scratch:
        with progress.stage(f"Running the artifact ({len(windows)} windows, {steps} scored tokens each)"):
            found = run_windows(artifact.path, windows, first, Path(scratch), weights_memory, device_id)
        with progress.stage("Comparing with the reference"):
            model, name = reference_model(checkpoint)
            positions = list(range(first, windows.shape[1] - 1))
            parts = [score(model(w, positions), f, w[first + 1 :]) for w, f in zip(windows, found, strict=True)]
    return Evaluation(
        text=text.name,
        reference=name,
        windows=len(windows),
        window=windows.shape[1],
        scored_tokens=len(windows) * steps,
        prefill_share=(first + 1) / (windows.shape[1] - 1),
        **summary(TokenScores.joined(parts)),
    )


def read_text(path: Path) -> str:
    """Read a UTF-8 text. Raises UserError if the file is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file. Name a text file: --text FILE") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}). Convert it first") from error


def run_windows(
    folder: Path, windows: Ids, first: int, scratch: Path, weights_memory: str, device_id: int | None = None
) -> Floats:
    """Return the artifact's logits [n, W - 1 - first, V] after tokens first .. W-2 of each window.

    exporter.proof.run_windows computes them in a separate process; the result is a memory map of its output file.
    """
    job, result = scratch / "job.npz", scratch / "logits.npy"
    np.savez(job, windows=windows, first=first, weights_memory=weights_memory, **device_entry(device_id))
    run_in_child("run_windows", folder, job, result)
    return np.asanyarray(np.load(result, mmap_mode="r", allow_pickle=False))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgellama evaluate`."""
    parser.add_argument("artifact", type=Path)
    parser.add_argument(
        "--text", type=Path, default=TEXT, help="UTF-8 text (default: two chapters of Alice in Wonderland)"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the text to use (default: %(default)s)")
    parser.add_argument("--checkpoint", help="the model that it was exported from (default: the one in the manifest)")
    add_weights_memory(parser)
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Run the command `evaluate`: print the figures as text or as one JSON object. Raises UserError as it does."""
    artifact = Artifact.open(arguments.artifact)
    checkpoint = opened_for(artifact.manifest, arguments.checkpoint)
    where = arguments.weights_memory, arguments.device_id
    found = evaluate(artifact, checkpoint, arguments.text, arguments.tokens, Progress(), *where)
    if arguments.json:
        print(json.dumps({"artifact": artifact.manifest.name, **asdict(found)}))
        return
    print(
        f"{found.text}: {found.windows} windows of {found.window} tokens, {found.scored_tokens} scored, "
        f"{found.prefill_share:.0%} of the tokens through prefill; reference {found.reference}\n"
        f"perplexity        {found.perplexity:.3f} +- {found.perplexity_error:.3f} "
        f"(reference {found.reference_perplexity:.3f})\n"
        f"KL divergence     {found.kl_mean:.3e} +- {found.kl_error:.1e} nats, 99th percentile {found.kl_p99:.3e}\n"
        f"top-1 agreement   {found.top1_agreement:.2%}"
    )
