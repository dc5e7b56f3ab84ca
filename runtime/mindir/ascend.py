"""The step graph of the ascend op set before its conversion. Its token axis is -1: each bucket becomes a gear."""

from __future__ import annotations

from edgellama.kernels.ascend.chips import CHIPS

from ..artifact.manifest import TensorSpec
from ..errors import UserError
from . import encoding as proto
from .builder import Builder, Operand
from .network import Network
from .portable import norm, swiglu

FLOAT32, FLOAT16 = 43, 42  # MindSpore's numbers of the dtypes, as Cast takes them
WEIGHTS = ("fp16", "int8")
ATTENTION = ("qkv", "cos", "sin", "start", "length", "k_cache", "v_cache"), ("out", "k_cache", "v_cache")
HEAD = ("x", "weight"), ("logits",)


def build(graph: Builder, network: Network) -> Operand:
    """Build the graph, and return its output, the logits. Raises UserError for an unknown target or weight format."""
    if network.target not in CHIPS or network.weights not in WEIGHTS:
        raise UserError(
            f"target is {network.target!r}, weights_format is {network.weights!r}; needed: one of {', '.join(CHIPS)}, "
            f"and one of {', '.join(WEIGHTS)}. Export again"
        )
    rows, hidden = network.rows, network.hidden
    tokens = graph.input(TensorSpec("tokens_by_step", "int32", (-1, rows)))
    start, length, last = (graph.input(TensorSpec(name, "int32", (rows,))) for name in ("start", "length", "last"))
    shape = (rows, network.groups, network.context, network.width)
    caches = [
        [graph.input(TensorSpec(f"{kind}_cache.{layer}", "float16", shape)) for kind in "kv"]
        for layer in range(network.layers)
    ]
    angles = [graph.weight(f"rope.{kind}", (network.context, network.width // 2)) for kind in ("cos", "sin")]
    embedding = graph.weight("model.embed_tokens.weight", (network.vocabulary, hidden), "float16")
    if rows > 1:
        tokens = graph.transpose("embed_tokens", tokens, (1, 0))
    h = graph.gather("embed_tokens", embedding, tokens)
    h = _cast(graph, "embed_tokens", graph.reshape("embed_tokens", h, (-1, hidden), (-1, hidden)), "float32")
    for layer in range(network.layers):
        name, scope = f"model.layers.{layer}", f"layers/{layer}"
        x = _norm(graph, network, f"{scope}/norm_qkv/norm", f"{name}.input_layernorm", h)
        joined = sum(network.linear(part)[0] for part in "qkv")
        sizes = (joined, hidden, network.qkv_bias)
        x = _linear(graph, network, f"{scope}/norm_qkv/linear", f"{name}.self_attn.qkv_proj", sizes, x)
        x = graph.reshape(f"{scope}/norm_qkv", x, (rows, -1, joined), (rows, -1, joined))
        x = _attention(graph, network, layer, [x, *angles, start, length, *caches[layer]])
        h = _linear_add(graph, network, f"{scope}/o_proj", f"{name}.self_attn.o_proj", "o", x, h)
        x = _norm(graph, network, f"{scope}/norm_swiglu/norm", f"{name}.post_attention_layernorm", h)
        gate, up = (
            _linear(graph, network, f"{scope}/norm_swiglu/{part}", f"{name}.mlp.{part}_proj", network.linear(part), x)
            for part in ("gate", "up")
        )
        x = swiglu(graph, f"{scope}/norm_swiglu", gate, up)
        h = _linear_add(graph, network, f"{scope}/down_proj", f"{name}.mlp.down_proj", "down", x, h)
    x = _norm(graph, network, "head/norm", "model.norm", graph.gather("head", h, last))
    weight = embedding if network.tied else graph.weight("lm_head.weight", (network.vocabulary, hidden), "float16")
    logits = (rows, network.vocabulary)
    if network.vocabulary % 16 or hidden % 16:  # LmHead takes whole blocks of 16
        return _cast(graph, "head", graph.matmul("head", x, weight, logits), "float32")
    return graph.node("", "Custom", (x, weight), logits, "float32", _attributes("LmHead", *HEAD), "lm_head")


def _attention(graph: Builder, network: Network, layer: int, inputs: list[Operand]) -> Operand:
    """Return the attention's result [T, H * D]; the operator writes the caches in place."""
    rows, width, scope = network.rows, network.heads * network.width, f"layers/{layer}/attention"
    own = [
        proto.integer("heads", network.heads),
        proto.real("scale", network.scale),
        proto.integer("window", network.windows[layer]),
    ]
    name = f"model.layers.{layer}.self_attn.attention"
    attributes = _attributes("FusedAttention", *ATTENTION, own)
    out = graph.node("", "Custom", inputs, (rows, -1, width), "float16", attributes, name)
    out.results += inputs[-2].results + inputs[-1].results
    return graph.reshape(scope, graph.item(scope, out, 0), (-1, width), (-1, width))


def _norm(graph: Builder, network: Network, scope: str, name: str, x: Operand) -> Operand:
    """Return the norm of x in float16, computed in float32."""
    if not CHIPS[network.target].has("RmsNorm"):
        return _cast(graph, scope, norm(graph, network, f"{scope}/norm", name, x), "float16")
    weight = graph.weight(f"{name}.weight", (network.hidden,))
    eps = graph.constant(proto.real("value", network.eps))
    found = graph.node(scope, "RmsNorm", (x, weight, eps), x.shape)
    found.results += (("float32", (*x.shape[:-1], 1)),)
    return _cast(graph, scope, graph.item(scope, found, 0), "float16")


def _linear(
    graph: Builder, network: Network, scope: str, name: str, sizes: tuple[int, int, bool], x: Operand
) -> Operand:
    """Return x W^T + b in float16. W is float16, or int8 with one scale per row."""
    outer, inner, bias = sizes
    if network.weights == "int8":
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


def _linear_add(graph: Builder, network: Network, scope: str, name: str, part: str, x: Operand, h: Operand) -> Operand:
    y = _linear(graph, network, f"{scope}/linear", name, network.linear(part), x)
    return graph.elementwise(scope, "Add", h, _cast(graph, scope, y, "float32"))


def _cast(graph: Builder, scope: str, x: Operand, dtype: str) -> Operand:
    number = FLOAT32 if dtype == "float32" else FLOAT16
    return graph.node(scope, "Cast", (x, graph.number(number)), x.shape, dtype)


def _attributes(
    kind: str, inputs: tuple[str, ...], outputs: tuple[str, ...], own: list[bytes] | None = None
) -> list[bytes]:
    """Return the attributes of an Ascend operator, in the order of their names."""
    named = {"func_type": proto.text("func_type", "aot"), "reg_op_name": proto.text("reg_op_name", kind)}
    named |= {"input_names": proto.texts("input_names", inputs), "output_names": proto.texts("output_names", outputs)}
    named |= dict(zip(("heads", "scale", "window"), own or (), strict=bool(own)))
    return [named[name] for name in sorted(named)]
