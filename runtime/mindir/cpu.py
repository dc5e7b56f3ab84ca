"""The step graph of the cpu op set: one custom operator for the embedding, each layer and the head."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from edgellama.kernels.weight_format import PANEL, W4_GROUPS, panel_bytes, panel_count, round_up

from ..artifact.manifest import TensorSpec
from ..artifact.safetensors import ALIGNMENT
from ..artifact.step_graph import STRETCH
from ..errors import UserError
from . import encoding as proto
from .architectures import AFTER, BEFORE
from .builder import Builder, Operand
from .network import MOST_LAYERS, Network

# WEIGHTS -> packed format
FORMATS = {"int8": "int8", "int4": "int4", "bf16": "bf16", "fp32": "f32", "q4_0": "q4_0", **{x: x for x in W4_GROUPS}}
CACHES = {"float32": "f32", "int16": "f16", "int8": "s8"}  # dtype of the graph's input -> the kernel's name


def build(graph: Builder, network: Network, tokens: int, abi: int) -> Operand:
    """Build the graph of one bucket, and return its output.

    Args:
        tokens: the bucket.
        abi: of the kernels.

    Raises:
        UserError: the manifest names a weight format or cache that this op set does not have.
    """
    if network.weights not in FORMATS or network.cache not in CACHES:
        raise UserError(
            f"weights_format is {network.weights!r}, cache.dtype is {network.cache!r}; needed: one of "
            f"{', '.join(FORMATS)}, and one of {', '.join(CACHES)}. Export again"
        )
    rows, hidden = network.rows, network.hidden
    ids = graph.input(TensorSpec("tokens", "int32", (rows, tokens)))
    start = graph.input(TensorSpec("start", "int32", (rows,)))
    length = graph.input(TensorSpec("length", "int32", (rows,)))
    caches = [[graph.input(spec) for spec in _caches(network, layer)] for layer in range(network.layers)]
    table_shape = (network.context, network.width // 2)
    angles = {kind: [graph.weight(name, table_shape) for name in names] for kind, names in network.tables.items()}
    layer_format = FORMATS[network.weights]
    tables = table_format(layer_format)
    table = (panel_count(network.vocabulary), panel_bytes(tables, hidden))

    def custom(kind: str, name: str, inputs: Sequence[Operand], shape: Sequence[int], **own: object) -> Operand:
        texts = {key: str(value) for key, value in {"abi": abi, "name": name, **own}.items()}
        attributes = _attributes(kind, tuple(sorted(texts.items())))
        return graph.node("", "Custom", inputs, shape, "float32", attributes, name)

    embedding = graph.weight("model.embed_tokens.weight", table, "uint8")
    h = custom(
        "EdgeEmbedding",
        "model.embed_tokens",
        [ids, embedding, length],
        (rows, tokens, hidden),
        format=tables,
        vocabulary=network.vocabulary,
        width=hidden,
    )
    biases = {f"{part}_bias": int(network.linear(part)[2]) for part in ("q", "o", "gate", "down")}
    variant = _variant(network)
    size = _layer_bytes(network, layer_format)
    for layer in range(network.layers):
        name = f"model.layers.{layer}"
        weights = graph.weight(f"{name}{STRETCH}", (size,), "uint8")
        h = custom(
            "EdgeDecoderLayer",
            name,
            [h, start, length, *angles[network.ropes[layer]], weights, *caches[layer]],
            h.shape,
            format=layer_format,
            heads=network.heads,
            scale=network.scale,
            window=network.windows[layer],
            cache=CACHES[network.cache],
            inner=network.inner,
            **biases,
            eps=network.eps,
            **variant,
        )
    head = embedding if network.tied else graph.weight("lm_head.weight", table, "uint8")
    gamma = graph.weight("model.norm.weight", (hidden,))
    return custom(
        "EdgeHead",
        "lm_head",
        [h, head, length, gamma],
        (rows, network.vocabulary),
        format=tables,
        vocabulary=network.vocabulary,
        eps=network.eps,
        **({} if network.logits_softcap is None else {"softcap": network.logits_softcap}),
    )


def table_format(layer_format: str) -> str:
    """Return the packed format of the embedding and the head: int8 when the layers have 4 bits."""
    return "int8" if layer_format in ("int4", "q4_0", *W4_GROUPS) else layer_format


def _caches(network: Network, layer: int) -> list[TensorSpec]:
    shape = (network.rows, network.groups, network.context)
    found = [TensorSpec(f"{kind}_cache.{layer}", network.cache, (*shape, network.width)) for kind in "kv"]
    if network.cache == "int8":
        found += [TensorSpec(f"{kind}_scale.{layer}", "int16", shape) for kind in "kv"]
    return found


def _layer_bytes(network: Network, form: str) -> int:
    """Return the size of a layer's range of weights.safetensors."""
    (queries, hidden, qkv_bias), (keys, _, _) = network.linear("q"), network.linear("k")
    inner, norms = round_up(network.inner, PANEL), network.norms
    total = sum(round_up(4 * size, ALIGNMENT) for size in network.head_norm_sizes if network.head_norms is not None)
    total += round_up(4 * hidden, ALIGNMENT) * sum(norm is not None for norm in norms)
    for outer, columns, bias in (
        (queries + 2 * keys, hidden, qkv_bias),
        network.linear("o"),
        (2 * inner, hidden, network.mlp_bias),
        network.linear("down"),
    ):
        panels = panel_count(outer)
        total += round_up(panels * panel_bytes(form, columns), ALIGNMENT)
        total += round_up(4 * panels * PANEL, ALIGNMENT) if bias else 0
    return total


def _variant(network: Network) -> dict[str, object]:
    """Return the attributes of a decoder layer that Llama's does not have."""
    found: dict[str, object] = {}
    if network.activation != "silu":
        found["activation"] = network.activation
    if network.softcap is not None:
        found["softcap"] = network.softcap
    if network.query_scale is not None:
        found["query_beta"], found["query_period"] = network.query_scale
    if network.norms != BEFORE:
        found["norms"] = "post" if network.norms == AFTER else "both"
    if network.head_norms is not None:
        found["qk_norm"] = network.head_norms.kind
    if found.keys() & {"norms", "qk_norm"}:
        found["norm_eps"] = network.norm_eps
    return found


@functools.lru_cache(maxsize=MOST_LAYERS)  # the graphs of all buckets have the same operators
def _attributes(kind: str, own: tuple[tuple[str, str], ...]) -> tuple[bytes, ...]:
    """Return the attributes that MindSpore Lite requires of a custom kernel, and the kernel's own ones as text."""
    fixed = {"type": kind, "func_name": kind, "reg_op_name": kind, "uniq_name": "CustomAscend", "func_type": "aot"}
    texts = [proto.text(name, value) for name, value in fixed.items()]
    return (*texts, proto.named_texts("attr", own))
