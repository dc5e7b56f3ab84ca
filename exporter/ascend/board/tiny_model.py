"""The probe of board-check: an artifact of a tiny random Llama for one Ascend target, with the logits to expect.

Any host that can export makes it. On the board it goes through everything that a real artifact goes through:
conversion, the operator package, gears, caches that are written in place, the engine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edgellama.artifact.manifest import Artifact
from edgellama.kernels.ascend.chips import CHIPS

from ...checkpoint.base import Checkpoint
from ...checkpoint.open import open_checkpoint
from ...export import export
from ...export_options import ExportOptions
from ...opsets.ascend_weights import QUANTIZED
from ...opsets.specs import ASCEND
from ...progress import Progress
from ...proof.float_reference import reference_logits
from ...proof.rounded_ascend import RoundedAscend

EXPECTED = "probe.npz"  # in the folder of the artifact
ROWS, CONTEXT, BUCKETS = 2, 512, (4, 16)  # with 512 positions, the 310P and the 910B split the attention
PROMPTS, STEPS = (277, 5), 6  # row 0 uses both prefill gears and fills both parts; the rows differ in position
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgellama board-probe`."""
    parser.add_argument("--target", required=True, help=", ".join(CHIPS))
    parser.add_argument("--weights", help=f"weight format: {', '.join(ASCEND.weights)} (default: {ASCEND.weights[0]})")
    parser.add_argument("--out", type=Path, help="folder (default: build/board-probe-<target>[-<weights>])")
    parser.set_defaults(run=run_probe)


def run_probe(arguments: argparse.Namespace) -> None:
    """Run the command `board-probe`. Raises UserError as `make` does."""
    progress = Progress()
    name = "-".join(filter(None, (arguments.target, arguments.weights)))
    out = make(arguments.target, arguments.out or Path(f"build/board-probe-{name}"), progress, arguments.weights)
    progress.console.print(f"wrote {out}; copy it to the board", highlight=False)


def make(target: str, out: Path, progress: Progress, weights: str | None = None) -> Path:
    """Export the probe for `target` into the folder `out`, and return the folder.

    Args:
        weights: the weight format; None is the target's default. Raises UserError as export does.
    """
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_checkpoint(Path(scratch) / "board-probe")
        options = ExportOptions(str(checkpoint), target, weights, context=CONTEXT, buckets=BUCKETS, batch=ROWS, out=out)
        export(options, progress)
        opened = open_checkpoint(checkpoint)
        # Rounding to 4 bits changes the logits by more than the check allows, so they are those of the rounded weights.
        packed = target in CHIPS and weights in QUANTIZED
        tokens, logits = expected(RoundedAscend(Artifact.open(out), opened) if packed else opened)
        np.savez(out / EXPECTED, tokens=tokens, prompts=np.array(PROMPTS), logits=logits)
    return out


def write_checkpoint(folder: Path) -> Path:
    """Write a Hugging Face folder with seeded random weights and return it.

    The weights are large enough that every earlier token changes the logits.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(310)
    hidden, inner, dim = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    heads, groups = CONFIG["num_attention_heads"] * dim, CONFIG["num_key_value_heads"] * dim  # type: ignore[operator]
    shapes: dict[str, tuple] = {"model.embed_tokens": (64, hidden), "lm_head": (64, hidden)}
    for layer in range(CONFIG["num_hidden_layers"]):  # type: ignore[call-overload]
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{x}_proj": (groups, hidden) for x in "kv"}
        shapes |= {f"{name}.self_attn.q_proj": (heads, hidden), f"{name}.self_attn.o_proj": (hidden, heads)}
        shapes |= {f"{name}.mlp.{x}_proj": (inner, hidden) for x in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj": (hidden, inner)}
    tensors = {
        f"{name}.weight": (rng.standard_normal(shape) * 2 / np.sqrt(shape[1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    norms = [f"model.layers.{i}.{x}_layernorm" for i in (0, 1) for x in ("input", "post_attention")]
    tensors |= {f"{name}.weight": np.ones(hidden, np.float32) for name in (*norms, "model.norm")}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    vocab = {f"t{i}": i for i in range(64)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def expected(checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens, int32 [B, longest prompt + steps], and the reference's logits, float32 [B, 1 + steps, V].

    The logits are those after the prompt and after each step.
    """
    tokens = np.random.default_rng(0).integers(3, 64, (ROWS, max(PROMPTS) + STEPS), dtype=np.int32)
    logits = [
        reference_logits(checkpoint, tokens[row, : length + STEPS], [length - 1 + i for i in range(STEPS + 1)])[0]
        for row, length in enumerate(PROMPTS)
    ]
    return tokens, np.stack(logits)
