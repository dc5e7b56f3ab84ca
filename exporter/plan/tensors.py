"""The weights of an artifact, as its graphs take them: name, shape, dtype, and what a token does with each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from exporter import weights as weights_file
from exporter.config import LlamaConfig
from exporter.opsets import Input, Shape, linear_sizes
from exporter.opsets.cpu_weights import FORMATS, format_of
from kernels.weight_format import PANEL, panel_bytes, panel_count

DATA_HEADER = 64  # of a graph's data file (exporter.constants)


@dataclass(frozen=True)
class Weight:
    """spec: as stored. flops: of multiplying one token with it. last_only: that is done for each row's last token.
    looked_up: a token reads a row of it instead; where it is multiplied with as well, it is read whole."""

    spec: Input
    flops: int = 0
    last_only: bool = False
    looked_up: bool = False

    @property
    def read_whole(self) -> bool:
        return self.flops > 0 or not self.looked_up


@dataclass(frozen=True)
class Formats:
    """What a target takes, the default first, as its op set says; where its weights lie; and how a matrix is stored."""

    weights: tuple[str, ...]
    caches: tuple[str, ...]
    constants: bool


ASCEND = Formats(("fp16", "int8"), ("float16",), True)
ASCEND_310B = Formats(("fp16",), ("float16",), True)  # CANN's WeightQuantBatchMatmul does not list the 310B
TARGETS = {
    "cpu": Formats(tuple(FORMATS), ("float16", "int8", "float32"), False),
    "portable": Formats(("fp32",), ("float32",), True),
    "ascend310p": ASCEND,
    "ascend310b": ASCEND_310B,
    "ascend910b": ASCEND,
}


def weights(config: LlamaConfig, shape: Shape, target: str) -> list[Weight]:
    """Every weight of the target's graphs, in their order; shape.context sets the rotary tables' length."""
    return list(_weights(config, shape, "ascend" if target.startswith("ascend") else target))


def _weights(config: LlamaConfig, shape: Shape, opset: str) -> Iterator[Weight]:
    hidden, vocabulary, tied = config.hidden_size, config.vocab_size, config.tie_word_embeddings
    for table in ("rope.cos", "rope.sin"):
        yield Weight(Input(table, (shape.context, config.head_dim // 2), "float32"), looked_up=True)
    head_flops = 2 * hidden * vocabulary
    for spec in _matrix("model.embed_tokens", (vocabulary, hidden, False), shape, opset):
        yield Weight(spec, head_flops if tied else 0, last_only=True, looked_up=True)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        norms = [Input(f"{name}.{norm}.weight", (hidden,), "float32") for norm in
                 ("input_layernorm", "post_attention_layernorm")]  # fmt: skip
        if opset == "portable":
            joined: list[tuple[list[str], Input | None]] = [
                ([f"{attention}.q_proj"], norms[0]),
                *(([f"{attention}.{x}_proj"], None) for x in "kvo"),
                ([f"{mlp}.gate_proj"], norms[1]),
                ([f"{mlp}.up_proj"], None),
            ]
        else:
            qkv = [f"{attention}.{x}_proj" for x in "qkv"]
            gate_up = [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
            joined = [(qkv, norms[0]), ([f"{attention}.o_proj"], None)]
            joined += [(gate_up, norms[1])] if opset == "cpu" else [([gate_up[0]], norms[1]), ([gate_up[1]], None)]
        for parts, norm in [*joined, ([f"{mlp}.down_proj"], None)]:
            yield from _linear(config, shape, opset, parts, norm)
    if not tied:
        for spec in _matrix("lm_head", (vocabulary, hidden, False), shape, opset):
            yield Weight(spec, head_flops, last_only=True)
    yield Weight(Input("model.norm.weight", (hidden,), "float32"))


def _linear(
    config: LlamaConfig, shape: Shape, opset: str, parts: Sequence[str], norm: Input | None
) -> Iterator[Weight]:
    """One linear layer that joins the checkpoint's `parts`, with the norm before it."""
    sizes = [linear_sizes(config, part) for part in parts]
    outer, inner, bias = sum(n for n, _, _ in sizes), sizes[0][1], sizes[0][2]
    layer, _, kind = parts[0].rpartition(".")
    name = parts[0] if len(parts) == 1 else f"{layer}.{'qkv' if kind == 'q_proj' else 'gate_up'}_proj"
    found = list(_matrix(name, (outer, inner, bias), shape, opset))
    yield Weight(found[0], 2 * outer * inner)
    if norm is not None:
        yield Weight(norm)
    for spec in found[1:]:
        yield Weight(spec)


def _matrix(name: str, sizes: tuple[int, int, bool], shape: Shape, opset: str) -> Iterator[Input]:
    """How an op set stores [outer, inner]: the matrix, then its scales and biases."""
    outer, inner, bias = sizes
    weight = f"{name}.weight"
    if opset == "cpu":
        panels = panel_count(outer)
        if name.endswith("gate_up_proj"):  # each half is filled up to whole panels
            panels = 2 * panel_count(outer // 2)
        yield Input(weight, (panels, panel_bytes(format_of(weight, shape.weights), inner)), "uint8")
        if bias:
            yield Input(f"{name}.bias", (panels * PANEL,), "float32")
        return
    if opset == "portable":
        dtype = "float32"
    else:
        dtype = "int8" if shape.weights == "int8" and name.endswith("_proj") else "float16"
    yield Input(weight, (outer, inner), dtype)
    if dtype == "int8":
        yield Input(f"{name}.scale", (outer,), "float16")
    if bias:
        yield Input(f"{name}.bias", (outer,), "float32" if opset == "portable" else "float16")


def file_bytes(specs: Sequence[Input], constants: bool) -> int:
    """Size of the file that export writes them to: weights.safetensors, or the data file of a graph."""
    padded = sum(-(-spec.nbytes // weights_file.ALIGNMENT) * weights_file.ALIGNMENT for spec in specs)
    return padded + (DATA_HEADER if constants else 8 + len(weights_file.header(specs)))


def parameters(config: LlamaConfig) -> int:
    """Elements of the checkpoint's tensors."""
    names = [*(f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down"))]
    linear = sum(n * k + n * bias for n, k, bias in (linear_sizes(config, name) for name in names))
    tables = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
    return config.num_hidden_layers * (linear + 2 * config.hidden_size) + config.hidden_size + tables


def cache_token_bytes(config: LlamaConfig, cache: str) -> int:
    """Bytes of one position of one row: keys and values of all layers, and with int8 a float16 scale each."""
    head = config.head_dim * {"float32": 4, "float16": 2, "int8": 1}[cache] + (2 if cache == "int8" else 0)
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head
