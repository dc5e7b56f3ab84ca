"""The weights of an artifact, as its graphs take them: name, shape, dtype, and what a token does with each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from exporter.graph_spec import Input, Shape
from exporter.network.config import LlamaConfig
from exporter.network.layer_sizes import linear_sizes
from exporter.opsets.ascend_model_checks import check_model
from exporter.opsets.cpu_weights import FORMATS, format_of, layer_tensors
from exporter.targets import TARGETS
from exporter.writing import weights_file
from kernels.weight_format import panel_bytes, panel_count

JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
DATA_HEADER = 64  # of a graph's data file (exporter.writing.constants)


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
class OpSet:
    """What a plan needs of an op set's module (exporter.opsets), without what tracing imports."""

    WEIGHTS: tuple[str, ...]
    CACHES: tuple[str, ...]
    WEIGHTS_ARE: str

    def check(self, config: LlamaConfig, shape: Shape, buckets: Sequence[int]) -> None:
        if shape.chip is not None:
            check_model(config, shape, buckets)


OPSETS = {
    "cpu": OpSet(tuple(FORMATS), ("float16", "int8", "float32"), "inputs"),
    "portable": OpSet(("fp32",), ("float32",), "constants"),
    "ascend": OpSet(("fp16", "int8"), ("float16",), "constants"),
}


def weights(config: LlamaConfig, shape: Shape, target: str) -> list[Weight]:
    """Every weight of the target's graphs, in their order; shape.context sets the rotary tables' length."""
    return list(_weights(config, shape, TARGETS[target].opset))


def _weights(config: LlamaConfig, shape: Shape, opset: str) -> Iterator[Weight]:
    hidden, vocabulary, tied = config.hidden_size, config.vocab_size, config.tie_word_embeddings
    for table in ("rope.cos", "rope.sin"):
        yield Weight(Input(table, (shape.context, config.head_dim // 2), "float32"), looked_up=True)
    head_flops = 2 * hidden * vocabulary
    for spec in _matrix("model.embed_tokens", (vocabulary, hidden, False), shape, opset):
        yield Weight(spec, head_flops if tied else 0, last_only=True, looked_up=True)
    for layer in range(config.num_hidden_layers):
        yield from _cpu_layer(config, shape, layer) if opset == "cpu" else _layer(config, shape, opset, layer)
    if not tied:
        for spec in _matrix("lm_head", (vocabulary, hidden, False), shape, opset):
            yield Weight(spec, head_flops, last_only=True)
    yield Weight(Input("model.norm.weight", (hidden,), "float32"))


def _cpu_layer(config: LlamaConfig, shape: Shape, layer: int) -> Iterator[Weight]:
    for spec in layer_tensors(config, shape, layer):
        name = spec.name.removesuffix(".weight")
        parts = JOINED.get(name.rpartition(".")[2], (name,))
        yield Weight(spec, _flops(config, parts) if spec.name.endswith("_proj.weight") else 0)


def _layer(config: LlamaConfig, shape: Shape, opset: str, layer: int) -> Iterator[Weight]:
    name = f"model.layers.{layer}"
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield Weight(Input(f"{name}.{norm}.weight", (config.hidden_size,), "float32"))
    projections: list[tuple[str, tuple[str, ...]]] = [("self_attn", (f"{x}_proj",)) for x in "qkvo"]
    if opset == "ascend":
        projections = [("self_attn", JOINED["qkv_proj"]), ("self_attn", ("o_proj",))]
    for block, parts in [*projections, *(("mlp", (f"{x}_proj",)) for x in ("gate", "up", "down"))]:
        sizes = [linear_sizes(config, part) for part in parts]
        joined = (sum(n for n, _, _ in sizes), sizes[0][1], sizes[0][2])
        kind = parts[0] if len(parts) == 1 else "qkv_proj"
        matrix, *rest = _matrix(f"{name}.{block}.{kind}", joined, shape, opset)
        yield Weight(matrix, _flops(config, parts))
        yield from map(Weight, rest)


def _flops(config: LlamaConfig, parts: Sequence[str]) -> int:
    return sum(2 * n * k for n, k, _ in (linear_sizes(config, part) for part in parts))


def _matrix(name: str, sizes: tuple[int, int, bool], shape: Shape, opset: str) -> Iterator[Input]:
    """How an op set stores [outer, inner]: the matrix, then its scales and biases."""
    outer, inner, bias = sizes
    weight = f"{name}.weight"
    if opset == "cpu":
        yield Input(weight, (panel_count(outer), panel_bytes(format_of(weight, shape.weights), inner)), "uint8")
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
