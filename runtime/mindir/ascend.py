"""The step graph of the ascend op set before its conversion. Its token axis is -1: each bucket becomes a gear."""

from __future__ import annotations

from edgellama.kernels.ascend.chips import CHIPS
from edgellama.kernels.ascend_format import panel_bytes
from edgellama.kernels.weight_format import PANEL

from ..artifact.manifest import TensorSpec
from ..errors import UserError
from . import encoding as proto
from .builder import Builder, Operand
from .network import Network
from .portable import gelu, norm, silu, soft_cap

FLOAT32, FLOAT16 = 43, 42  # MindSpore's numbers of the dtypes, as Cast takes them
WEIGHTS = ("fp16", "int8", "int4")
PACKED = {"int8": (8, 32), "int4": (4, 32)}  # bits of the integers, inputs that share a scale
ATTENTION = ("qkv", "cos", "sin", "start", "length", "k_cache", "v_cache"), ("out", "k_cache", "v_cache")
SPLIT = ATTENTION[0], ("out", "partial", "k_cache", "v_cache")
JOIN = ("out", "partial"), ("joined",)
HEAD = ("x", "weight"), ("logits",)
LINEAR = ("x", "weight"), ("y",)


def build(graph: Builder, network: Network) -> Operand:
    """Build the graph, and return its output, the logits. Raises UserError for an unknown target or weight format."""
    if network.target not in CHIPS or network.weights not in WEIGHTS:
        raise UserError(
            f"target is {network.target!r}, weights_format is {network.weights!r}; needed: one of {', '.join(CHIPS)}, "
            f"and one of {', '.join(WEIGHTS)}. Export again"
        )
    if network.weights == "int4" and network.format_version < 2:
        raise UserError("weights_format is 'int4', format_version is 1; needed: 2 for int4 weights. Export again")
    rows, hidden = network.rows, network.hidden
    tokens = graph.input(TensorSpec("tokens_by_step", "int32", (-1, rows)))
    start, length, last = (graph.input(TensorSpec(name, "int32", (rows,))) for name in ("start", "length", "last"))
    cache_shape = (rows, network.groups, network.context, network.width)
    caches = [
        [graph.input(TensorSpec(f"{kind}_cache.{layer}", "float16", cache_shape)) for kind in "kv"]
        for layer in range(network.layers)
    ]
    table_shape = (network.context, network.width // 2)
    angles = {kind: [graph.weight(name, table_shape) for name in names] for kind, names in network.tables.items()}
    embedding = graph.weight("model.embed_tokens.weight", (network.vocabulary, hidden), "float16")
    if rows > 1:
        tokens = graph.transpose("embed_tokens", tokens, (1, 0))
    h = graph.gather("embed_tokens", embedding, tokens)
    h = _cast(graph, "embed_tokens", graph.reshape("embed_tokens", h, (-1, hidden), (-1, hidden)), "float32")
    for layer in range(network.layers):
        name, scope = f"model.layers.{layer}", f"layers/{layer}"
        norms = [below and f"{name}.{below}" for below in network.norms]
        x = _stream_norm(graph, network, f"{scope}/norm_qkv/norm", norms[0], h)
        joined = sum(network.linear(part)[0] for part in "qkv")
        sizes = (joined, hidden, network.qkv_bias)
        x = _linear(graph, network, f"{scope}/norm_qkv/linear", f"{name}.self_attn.qkv_proj", sizes, x)
        x = _head_norms(graph, network, f"{scope}/norm_qkv/head_norms", f"{name}.self_attn", x)
        x = graph.reshape(f"{scope}/norm_qkv", x, (rows, -1, joined), (rows, -1, joined))
        x = _attention(graph, network, layer, [x, *angles[network.ropes[layer]], start, length, *caches[layer]])
        h = _linear_add(graph, network, f"{scope}/o_proj", f"{name}.self_attn.o_proj", "o", norms[1], x, h)
        x = _stream_norm(graph, network, f"{scope}/norm_swiglu/norm", norms[2], h)
        gate, up = (
            _linear(graph, network, f"{scope}/norm_swiglu/{part}", f"{name}.mlp.{part}_proj", network.linear(part), x)
            for part in ("gate", "up")
        )
        x = graph.elementwise(f"{scope}/norm_swiglu", "Mul", _activated(graph, network, scope, gate), up)
        h = _linear_add(graph, network, f"{scope}/down_proj", f"{name}.mlp.down_proj", "down", norms[3], x, h)
    x = _stream_norm(graph, network, "head/norm", "model.norm", graph.gather("head", h, last))
    weight = embedding if network.tied else graph.weight("lm_head.weight", (network.vocabulary, hidden), "float16")
    shape = (rows, network.vocabulary)
    if network.vocabulary % 16 or hidden % 16:  # LmHead takes whole blocks of 16
        logits = _cast(graph, "head", graph.matmul("head", x, weight, shape), "float32")
    else:
        logits = graph.node("", "Custom", (x, weight), shape, "float32", _attributes("LmHead", *HEAD), "lm_head")
    return soft_cap(graph, "head/cap", network.logits_softcap, logits)


def _attention(graph: Builder, network: Network, layer: int, inputs: list[Operand]) -> Operand:
    """Return the attention's result [T, H * D]; the operator writes the caches in place."""
    rows, width, scope = network.rows, network.heads * network.width, f"layers/{layer}/attention"
    own = [
        proto.integer("heads", network.heads),
        proto.real("scale", network.scale),
        proto.integer("window", network.windows[layer]),
    ]
    name = f"model.layers.{layer}.self_attn"
    parts = _parts(network, layer)
    if parts == 1:
        attributes = _attributes("FusedAttention", *ATTENTION, own)
    else:
        attributes = _attributes("SplitAttention", *SPLIT, [*own, proto.integer("parts", parts)])
    found = graph.node("", "Custom", inputs, (rows, -1, width), "float16", attributes, f"{name}.attention")
    if parts > 1:
        record = network.heads // network.groups * (network.width + 16)
        found.results += (("float32", (rows, network.groups, parts, record)),)
    found.results += inputs[-2].results + inputs[-1].results
    out = graph.item(scope, found, 0)
    if parts > 1:
        both = (out, graph.item(scope, found, 1))
        out = graph.node(
            "", "Custom", both, (rows, -1, width), "float16", _attributes("JoinAttention", *JOIN), f"{name}.join"
        )
    return graph.reshape(scope, out, (-1, width), (-1, width))


def _is_packed(network: Network) -> bool:
    """Whether the layers' matrices are packed; format version 1 has int8 weights for CANN's operator."""
    return network.weights in PACKED and network.format_version >= 2


def _parts(network: Network, layer: int) -> int:
    """Return the parts of a layer's attention; format version 1 has one."""
    if network.format_version < 2:
        return 1
    seen = network.windows[layer] or network.context
    return CHIPS[network.target].attention_parts(network.rows * network.groups, seen)


def _norm(graph: Builder, network: Network, scope: str, name: str, eps: float, x: Operand) -> Operand:
    """Return the norm of x, float32."""
    if not CHIPS[network.target].has("RmsNorm"):
        return norm(graph, f"{scope}/norm", name, eps, x)
    weight = graph.weight(f"{name}.weight", x.shape[-1:])
    found = graph.node(scope, "RmsNorm", (x, weight, graph.constant(proto.real("value", eps))), x.shape)
    found.results += (("float32", (*x.shape[:-1], 1)),)
    return graph.item(scope, found, 0)


def _stream_norm(graph: Builder, network: Network, scope: str, name: str | None, h: Operand) -> Operand:
    """Return the norm `name` of the residual stream in float16, computed in float32; without a name the stream."""
    return _cast(graph, scope, h if name is None else _norm(graph, network, scope, name, network.eps, h), "float16")


def _head_norms(graph: Builder, network: Network, scope: str, name: str, qkv: Operand) -> Operand:
    """Return qkv [T, (H + 2G) * D] with normed queries and keys, float16."""
    norms = network.head_norms
    if norms is None:
        return qkv
    queries, keys = network.heads * network.width, network.groups * network.width

    def part(first: int, width: int) -> Operand:
        return graph.node(scope, "Slice", (qkv, graph.numbers(0, first), graph.numbers(-1, width)), (-1, width))

    def normed(below: str, label: str, first: int, width: int) -> Operand:
        x = _cast(graph, scope, part(first, width), "float32")
        split = norms.kind != "whole" and width != network.width  # MindSpore drops a Reshape to the same shape
        if split:
            x = graph.reshape(scope, x, (-1, network.width), (-1, network.width))
        x = _norm(graph, network, f"{scope}/{label}", f"{name}.{below}", network.norm_eps, x)
        if split:
            x = graph.reshape(scope, x, (-1, width), (-1, width))
        return _cast(graph, scope, x, "float16")

    q, k = normed(norms.q, "q_norm", 0, queries), normed(norms.k, "k_norm", queries, keys)
    return graph.concat(scope, [q, k, part(queries + keys, keys)], axis=1)


def _activated(graph: Builder, network: Network, scope: str, gate: Operand) -> Operand:
    """Return the activation of a float16 gate; GELU is computed in float32."""
    if network.activation == "silu":
        return silu(graph, f"{scope}/norm_swiglu", gate)
    own = f"{scope}/norm_swiglu/gelu"
    return _cast(graph, own, gelu(graph, f"{own}/gelu", _cast(graph, own, gate, "float32")), "float16")


def _linear(
    graph: Builder,
    network: Network,
    scope: str,
    name: str,
    sizes: tuple[int, int, bool],
    x: Operand,
    dtype: str = "float16",
) -> Operand:
    """Return x W^T + b. W is float16 or packed. dtype: of the result; float32 only if W is packed, and without b."""
    outer, inner, bias = sizes
    if _is_packed(network):
        bits, group = PACKED[network.weights]
        size = panel_bytes(bits, group, inner)
        packed = graph.weight(f"{name}.weight", (outer // PANEL, size), "uint8")
        own = {"bits": bits, "group": group, "wide": int(dtype == "float32")}
        attributes = _attributes("QuantLinear", *LINEAR, [proto.integer(key, value) for key, value in own.items()])
        y = graph.node("", "Custom", (x, packed), (x.shape[0], outer), dtype, attributes, name)
    elif network.weights == "int8":  # of format version 1: one scale per row
        operands = (
            x,
            graph.weight(f"{name}.weight", (outer, inner), "int8"),
            graph.weight(f"{name}.scale", (outer,), "float16"),
        )
        attributes = [
            proto.integer("transpose_x", 0, proto.BOOL),
            proto.integer("transpose_weight", 1, proto.BOOL),
            proto.integer("antiquant_group_size", 0),
        ]
        shape = (x.shape[0], outer)
        y = graph.node(f"{scope}/matmul", "WeightQuantBatchMatmul", operands, shape, attributes=attributes)
    else:
        weight = graph.weight(f"{name}.weight", (outer, inner), "float16")
        y = graph.matmul(f"{scope}/matmul", x, weight, (x.shape[0], outer))
    return graph.elementwise(scope, "Add", y, graph.weight(f"{name}.bias", (outer,), "float16")) if bias else y


def _linear_add(
    graph: Builder, network: Network, scope: str, name: str, part: str, after: str | None, x: Operand, h: Operand
) -> Operand:
    """Return h + the linear layer of x, or h + the norm `after` of it, float32."""
    sizes = network.linear(part)
    dtype = "float32" if _is_packed(network) and not sizes[2] else "float16"
    y = _linear(graph, network, f"{scope}/linear", name, sizes, x, dtype)
    y = y if dtype == "float32" else _cast(graph, scope, y, "float32")
    if after is not None:
        y = _norm(graph, network, f"{scope}/norm", after, network.norm_eps, y)
    return graph.elementwise(scope, "Add", h, y)


def _cast(graph: Builder, scope: str, x: Operand, dtype: str) -> Operand:
    if x.operator == "Cast" and x.inputs[0].dtype == dtype:  # MindSpore drops a conversion and its return
        return x.inputs[0]
    number = FLOAT32 if dtype == "float32" else FLOAT16
    return graph.node(scope, "Cast", (x, graph.number(number)), x.shape, dtype)


def _attributes(
    kind: str, inputs: tuple[str, ...], outputs: tuple[str, ...], own: list[bytes] | None = None
) -> list[bytes]:
    """Return the attributes of an Ascend operator, in the order of their names."""
    named = {"func_type": proto.text("func_type", "aot"), "reg_op_name": proto.text("reg_op_name", kind)}
    named |= {"input_names": proto.texts("input_names", inputs), "output_names": proto.texts("output_names", outputs)}
    keys = ("bits", "group", "wide") if kind == "QuantLinear" else ("heads", "scale", "window", "parts")
    named |= dict(zip(keys, own or (), strict=False))
    return [named[name] for name in sorted(named)]
