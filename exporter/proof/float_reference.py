"""Compute the network in float32, independently of every exported graph: with transformers, or else with numpy.

transformers is used if torch is installed and the memory suffices. The numpy version processes all tokens layer by
layer and reads a block of rows at a time, so it can check a model that is much larger than the memory.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgellama.kernels.reference import rms_norm, soft_cap

from ..checkpoint.base import Checkpoint
from ..checkpoint.folded import folded
from ..checkpoint.fused import fused_parts
from ..checkpoint.row_blocks import tensor_pieces
from ..float_layer import decoder_layer
from ..writing.tensor_stream import made_in_order

Floats = NDArray[np.float32]
Model = Callable[[NDArray[np.int32], list[int]], Floats]  # (tokens [n], positions) -> logits [len(positions), V]


def reference_logits(checkpoint: Checkpoint, tokens: NDArray[np.int32], positions: list[int]) -> tuple[Floats, str]:
    """Return (logits float32 [len(positions), V], the reference's name).

    tokens [n]: one sequence, which starts with an empty cache. Row i of the logits follows tokens[0..positions[i]].
    """
    model, name = reference_model(checkpoint)
    return model(tokens, positions), name


def reference_model(checkpoint: Checkpoint) -> tuple[Model, str]:
    """Return (the network as a function of (tokens, positions), the reference's name), to compute several sequences."""
    needed = sum(4 * int(np.prod(checkpoint.shape(name))) for name in checkpoint.names())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Folded weights are those of another network than the config's.
    if not checkpoint.is_folded and importlib.util.find_spec("torch") and needed < memory // 3:
        return _transformers(checkpoint), "transformers float32"
    return functools.partial(_numpy, checkpoint), "numpy float32"


def _transformers(checkpoint: Checkpoint) -> Model:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(**checkpoint.config.reference_dict)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    state = {name: torch.from_numpy(np.array(checkpoint.tensor(name))) for name in checkpoint.names()}
    for joined, parts in fused_parts(checkpoint.config).items():
        state[joined] = torch.cat([state.pop(part) for part in parts])
    loaded = model.load_state_dict(state, strict=False, assign=True)
    if loaded.unexpected_keys or set(loaded.missing_keys) - {"lm_head.weight"}:
        raise RuntimeError(f"transformers' {type(model).__name__} has other weights than this exporter: {loaded}")
    model.tie_weights()
    # Buffers are not in the checkpoint, and a module created on "meta" has no values for them.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    embedding = model.model.embed_tokens
    if hasattr(embedding, "embed_scale"):
        embedding.embed_scale = torch.tensor(embedding.scalar_embed_scale)
    model.eval()

    def logits(tokens: NDArray[np.int32], positions: list[int]) -> Floats:
        with torch.no_grad():
            # Only the head computes `positions`; it is the whole model's, with its scaling and soft cap.
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            return np.asarray(model(ids, logits_to_keep=torch.tensor(positions)).logits[0].numpy())

    return logits


def _numpy(checkpoint: Checkpoint, tokens: NDArray[np.int32], positions: list[int]) -> Floats:
    checkpoint = folded(checkpoint)
    config = checkpoint.config

    def blocks(name: str) -> Iterator[Floats]:
        return (rows for _, rows in made_in_order((0, piece) for piece in tensor_pieces(name, checkpoint)))

    table = "model.embed_tokens.weight"
    h = np.concatenate([checkpoint.rows(table, token, 1) for token in tokens.tolist()])  # [n, E]
    for layer in range(config.num_hidden_layers):
        h = decoder_layer(checkpoint, layer, h, len(tokens), blocks)
    h = rms_norm(h[positions], checkpoint.tensor("model.norm.weight"), config.stream_norm_eps)
    head = table if config.tie_word_embeddings else "lm_head.weight"
    logits = np.concatenate([h @ rows.T for rows in blocks(head)], axis=-1)
    return soft_cap(logits, config.final_logit_softcapping)
