"""Bytes that an artifact stores, and bytes that one of its steps reads."""

from __future__ import annotations

import math

from .manifest import Manifest
from .step_graph import CACHE_PREFIXES, STEP_INPUTS

ROTARY_TABLES = "rope."  # begins the names of the rotary tables
EMBEDDING = "model.embed_tokens.weight"


def weights_bytes(manifest: Manifest) -> int:
    """Return the size of the weights on disk: the weights file, or the graphs' data files."""
    if manifest.weights is not None:
        return manifest.weights.bytes
    return sum(data.bytes for graph in manifest.graphs for data in graph.data)


def cache_bytes(manifest: Manifest) -> int:
    """Return the size of the whole cache: all rows, all layers, keys and values with their scales."""
    return sum(spec.nbytes for spec in manifest.graph_for(1).inputs if spec.name.startswith(CACHE_PREFIXES))


def cache_bytes_per_token(manifest: Manifest) -> int:
    """Return the size of one position of one row, in all layers."""
    return cache_bytes(manifest) // (manifest.batch * manifest.context)


def step_weight_bytes(manifest: Manifest) -> int:
    """Return the bytes of weights that a step of any batch reads.

    A step reads all weights except those that it looks up by row: the rotary tables, and the embedding when the head
    does not share it.
    """
    tied = manifest.config.get("tie_word_embeddings", False)
    graph = manifest.graph_for(1)
    if manifest.weights is None:  # constants of the graph, in float32
        embedding = 4 * manifest.config["vocab_size"] * manifest.config.get("hidden_size", 0)
        return weights_bytes(manifest) - (0 if tied else embedding)
    looked_up = () if tied else (EMBEDDING,)
    return sum(
        spec.nbytes
        for spec in graph.inputs
        if spec.name not in STEP_INPUTS
        and spec.name not in looked_up
        and not spec.name.startswith((*CACHE_PREFIXES, ROTARY_TABLES))
    )


def bytes_per_step(manifest: Manifest, depth: int, rows: int, steps: int) -> int:
    """Return the bytes that the middle one of `steps` decode steps has to read: weights once, and each row's cache.

    Args:
        depth: tokens in the cache before the first of the steps
    """
    filled = depth + math.ceil(steps / 2)
    return step_weight_bytes(manifest) + rows * filled * cache_bytes_per_token(manifest)
