"""The step graph of the portable op set: built-in operators, float32, weights as constants.

Letters: B rows, S tokens of a row, T = B * S, H query heads, G key/value heads, R = H / G, D head size, C cache
capacity, E hidden size.
"""

from __future__ import annotations

import math
import struct

from ..artifact.manifest import TensorSpec
from . import encoding as proto
from .builder import Builder, Operand, transposes
from .network import Network


def build(graph: Builder, network: Network, tokens: int) -> Operand:
    """Build the graph at `tokens` tokens, and return its output: the logits, then each layer's new rows."""
    rows, hidden, half = network.rows, network.hidden, network.width // 2
    step = {spec.name: graph.input(spec) for spec in _step_inputs(network, tokens)}
    shape = (rows, network.groups, network.context, network.width)
    caches = [
        [graph.input(TensorSpec(f"{kind}_cache.{layer}", "float32", shape)) for kind in "kv"]
        for layer in range(network.layers)
    ]

    def angle(name: str) -> Operand:  # [B, 1, S, D/2]
        found = graph.gather("prepare", graph.weight(name, (network.context, half)), step["positions"])
        return graph.reshape("prepare", found, (rows, 1, -1, half), (rows, 1, tokens, half))

    angles = {kind: [angle(name) for name in names] for kind, names in network.tables.items()}
    scaled = network.query_scale is not None
    query = [angle(f"rope.query.{part}") for part in ("cos", "sin")] if scaled else None
    embedding = graph.weight("model.embed_tokens.weight", (network.vocabulary, hidden))
    h = graph.gather("embed_tokens", embedding, step["tokens"])
    h = graph.reshape("embed_tokens", h, (-1, hidden), (rows * tokens, hidden))
    written = []
    for layer in range(network.layers):
        name, scope = f"model.layers.{layer}", f"layers/{layer}"
        norms = [below and f"{name}.{below}" for below in network.norms]
        x = _stream_norm(graph, network, f"{scope}/norm_qkv/norm", norms[0], h)
        qkv = [_linear(graph, network, f"{scope}/norm_qkv/{part}", f"{name}.self_attn", part, x) for part in "qkv"]
        kind = "window_" if network.windows[layer] else ""
        masks = step[f"{kind}cache_mask"], step[f"{kind}self_mask"]
        rope = angles[network.ropes[layer]]
        x, k, v = _attention(graph, network, layer, tokens, qkv, (query or rope, rope), masks, caches[layer])
        written += [k, v]
        y = _linear(graph, network, f"{scope}/o_proj/linear", f"{name}.self_attn", "o", x)
        h = _add_normed(graph, network, f"{scope}/o_proj", norms[1], h, y)
        x = _stream_norm(graph, network, f"{scope}/norm_swiglu/norm", norms[2], h)
        gate = _linear(graph, network, f"{scope}/norm_swiglu/gate", f"{name}.mlp", "gate", x)
        up = _linear(graph, network, f"{scope}/norm_swiglu/up", f"{name}.mlp", "up", x)
        x = graph.elementwise(
            f"{scope}/norm_swiglu", "Mul", _activated(graph, network, f"{scope}/norm_swiglu", gate), up
        )
        y = _linear(graph, network, f"{scope}/down_proj/linear", f"{name}.mlp", "down", x)
        h = _add_normed(graph, network, f"{scope}/down_proj", norms[3], h, y)
    x = _stream_norm(graph, network, "head/norm", "model.norm", graph.gather("head", h, step["last"]))
    weight = embedding if network.tied else graph.weight("lm_head.weight", (network.vocabulary, hidden))
    logits = soft_cap(
        graph, "head/cap", network.logits_softcap, graph.matmul("head", x, weight, (rows, network.vocabulary))
    )
    return graph.join("", [logits, *written])


def norm(graph: Builder, scope: str, name: str, eps: float, x: Operand) -> Operand:
    """x / sqrt(mean(x^2) + eps) * weight."""
    weight = graph.weight(f"{name}.weight", x.shape[-1:])
    square = graph.elementwise(scope, "Square", x)
    column = (*x.shape[:-1], 1)
    keep = [proto.integer("keep_dims", 1, proto.BOOL)]
    mean = graph.node(scope, "ReduceMean", (square, graph.numbers(-1)), column, attributes=keep)
    root = graph.elementwise(scope, "Sqrt", graph.elementwise(scope, "Add", mean, graph.array(eps, 2)))
    return graph.elementwise(scope, "Mul", graph.elementwise(scope, "Div", x, root), weight)


def silu(graph: Builder, scope: str, x: Operand) -> Operand:
    """x * sigmoid(x)."""
    return graph.elementwise(scope, "Mul", x, graph.elementwise(scope, "Sigmoid", x))


def gelu(graph: Builder, scope: str, x: Operand) -> Operand:
    """x * sigmoid(x * (x * x * c + l)): the tanh approximation, arXiv:1606.08415."""
    linear = 2 * math.sqrt(2 / math.pi)
    square = graph.elementwise(scope, "Mul", x, x)
    factor = graph.elementwise(scope, "Mul", square, graph.array(linear * 0.044715, 2))
    factor = graph.elementwise(scope, "Add", factor, graph.array(linear, 2))
    inner = graph.elementwise(scope, "Mul", x, factor)
    return graph.elementwise(scope, "Mul", x, graph.elementwise(scope, "Sigmoid", inner))


def soft_cap(graph: Builder, scope: str, cap: float | None, x: Operand) -> Operand:
    """cap * tanh(x / cap), with tanh(y) = 2 sigmoid(2 y) - 1; x itself without a cap."""
    if cap is None:
        return x
    inner = graph.elementwise(scope, "Sigmoid", _times(graph, scope, x, 2 / cap))
    return graph.elementwise(scope, "Sub", _times(graph, scope, inner, 2 * cap), graph.array(cap, len(x.shape)))


def _times(graph: Builder, scope: str, x: Operand, factor: float) -> Operand:
    """x * factor. MindSpore drops a product with a float32 that is 1."""
    if struct.unpack("<f", struct.pack("<f", factor)) == (1.0,):
        return x
    return graph.elementwise(scope, "Mul", x, graph.array(factor, len(x.shape)))


def _activated(graph: Builder, network: Network, scope: str, gate: Operand) -> Operand:
    return silu(graph, scope, gate) if network.activation == "silu" else gelu(graph, f"{scope}/gelu", gate)


def _add_normed(graph: Builder, network: Network, scope: str, name: str | None, h: Operand, y: Operand) -> Operand:
    """h + y, or h + the norm `name` of y."""
    if name is not None:
        y = norm(graph, f"{scope}/norm", name, network.norm_eps, y)
    return graph.elementwise(scope, "Add", h, y)


def _stream_norm(graph: Builder, network: Network, scope: str, name: str | None, h: Operand) -> Operand:
    """The norm `name` of the residual stream; the stream itself if the architecture has none there."""
    return h if name is None else norm(graph, scope, name, network.eps, h)


def _step_inputs(network: Network, tokens: int) -> list[TensorSpec]:
    rows, queries = network.rows, network.heads // network.groups * tokens
    found = [
        TensorSpec("tokens", "int32", (rows, tokens)),
        TensorSpec("positions", "int32", (rows, tokens)),
        TensorSpec("last", "int32", (rows,)),
    ]
    if not all(network.windows):
        found.append(TensorSpec("cache_mask", "float32", (rows, 1, 1, network.context)))
        found.append(TensorSpec("self_mask", "float32", (rows, 1, queries, tokens)))
    if any(network.windows):
        found.append(TensorSpec("window_cache_mask", "float32", (rows, 1, queries, network.context)))
        found.append(TensorSpec("window_self_mask", "float32", (rows, 1, queries, tokens)))
    return found


def _linear(graph: Builder, network: Network, scope: str, name: str, part: str, x: Operand) -> Operand:
    outer, inner, bias = network.linear(part)
    y = graph.matmul(scope, x, graph.weight(f"{name}.{part}_proj.weight", (outer, inner)), (x.shape[0], outer))
    if bias:
        y = graph.elementwise(scope, "Add", y, graph.weight(f"{name}.{part}_proj.bias", (outer,)))
    return y


def _attention(
    graph: Builder,
    network: Network,
    layer: int,
    tokens: int,
    qkv: list[Operand],
    angles: tuple[list[Operand], list[Operand]],
    masks: tuple[Operand, Operand],
    caches: list[Operand],
) -> tuple[Operand, Operand, Operand]:
    """angles: of the queries, and of the keys.

    Return the attention's result [T, H * D] and the new rows of both caches, [B, G, S, D]."""
    scope, name = f"layers/{layer}/attention", f"model.layers.{layer}.self_attn"
    rows, heads, groups, width = network.rows, network.heads, network.groups, network.width
    repeat, capacity = heads // groups, network.context
    q, k, v = qkv
    k_cache, v_cache = caches

    def split(x: Operand, count: int) -> Operand:  # [B, heads, S, D]
        x = graph.reshape(scope, x, (rows, -1, count, width), (rows, tokens, count, width))
        return graph.transpose(scope, x, (0, 2, 1, 3))

    def rope(x: Operand, cos: Operand, sin: Operand) -> Operand:
        half = (*x.shape[:-1], width // 2)
        attributes = [proto.integer("axis", 3), proto.integer("output_num", 2)]
        halves = graph.node(scope, "Split", (x,), half, attributes=attributes)
        halves.results *= 2
        low, high = graph.item(scope, halves, 0), graph.item(scope, halves, 1)

        def product(x: Operand, y: Operand) -> Operand:
            return graph.elementwise(scope, "Mul", x, y)

        return graph.concat(
            scope,
            [
                graph.elementwise(scope, "Sub", product(low, cos), product(high, sin)),
                graph.elementwise(scope, "Add", product(high, cos), product(low, sin)),
            ],
        )

    def normed(q: Operand, k: Operand, kind: str) -> tuple[Operand, Operand]:
        norms = network.head_norms
        if norms is None or norms.kind != kind:
            return q, k
        return (
            norm(graph, f"{scope}/q_norm", f"{name}.{norms.q}", network.norm_eps, q),
            norm(graph, f"{scope}/k_norm", f"{name}.{norms.k}", network.norm_eps, k),
        )

    q, k = normed(q, k, "whole")
    q, k = normed(split(q, heads), split(k, groups), "each")
    q, k = normed(rope(q, *angles[0]), rope(k, *angles[1]), "after_rope")
    v = split(v, groups)
    q = _times(graph, scope, q, network.scale)
    grouped = (rows, groups, repeat * tokens)
    if repeat > 1:  # MindSpore drops a Reshape to the same shape
        q = graph.reshape(scope, q, (rows, groups, -1, width), (*grouped, width))
    past = graph.matmul(scope, q, k_cache, (*grouped, capacity), "BatchMatMul")
    past = graph.elementwise(scope, "Add", soft_cap(graph, f"{scope}/cap", network.softcap, past), masks[0])
    own = graph.matmul(scope, q, k, (*grouped, tokens), "BatchMatMul")
    own = graph.elementwise(scope, "Add", soft_cap(graph, f"{scope}/cap", network.softcap, own), masks[1])
    joined = graph.concat(scope, [past, own])
    p = graph.node(scope, "Softmax", (joined,), joined.shape, attributes=[proto.integers("axis", (-1,))])
    sizes = ((0, 0, 0, 0), (-1, -1, -1, capacity), capacity), ((0, 0, 0, capacity), (-1, -1, -1, -1), tokens)
    parts = []
    for (first, size, columns), values in zip(sizes, (v_cache, v), strict=True):
        shares = graph.node(scope, "Slice", (p, graph.numbers(*first), graph.numbers(*size)), (*grouped, columns))
        product = graph.node(
            scope, "BatchMatMul", (shares, values), (*grouped, width), attributes=transposes(False, False)
        )
        parts.append(product)
    out = graph.elementwise(scope, "Add", *parts)
    by_head = (rows, groups, repeat)
    out = graph.reshape(scope, out, (*by_head, -1, width), (*by_head, tokens, width))
    out = graph.transpose(scope, out, (0, 3, 1, 2, 4))
    return graph.reshape(scope, out, (-1, heads * width), (rows * tokens, heads * width)), k, v
