"""The weights of an artifact, as its graphs store them, and what a token does with each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgellama.artifact.manifest import DTYPE_BYTES, TensorSpec
from edgellama.artifact.safetensors import ALIGNMENT, encode_header
from edgellama.kernels.weight_format import round_up
from edgellama.mindir.builder import HEADER

from ..graph_spec import Shape
from ..network.config import LlamaConfig
from ..network.layer_sizes import layer_norms, linear_sizes
from ..network.rope import QUERY_NAMES, query_scale, rope_names
from ..opsets.cpu_weights import layer_tensors
from ..opsets.specs import OpSetSpec
from ..targets import TARGETS

JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True)
class Weight:
    """One stored tensor of the weights.

    Attributes:
        spec: the tensor as stored.
        flops: the operations of multiplying one token with it.
        last_only: the multiplication is done for the last token of each row only.
        looked_up: a token reads one row of it. If it is multiplied with as well, it is read whole.
    """

    spec: TensorSpec
    flops: int = 0
    last_only: bool = False
    looked_up: bool = False

    @property
    def read_whole(self) -> bool:
        """Whether a pass reads all of it."""
        return self.flops > 0 or not self.looked_up


def weights(config: LlamaConfig, shape: Shape, target: str) -> list[Weight]:
    """Return every weight of the target's graphs, in their order.

    shape.context is the length of the rotary tables.
    """
    return list(_weights(config, shape, TARGETS[target].opset))


def _weights(config: LlamaConfig, shape: Shape, opset: OpSetSpec) -> Iterator[Weight]:
    hidden, vocabulary, tied = config.hidden_size, config.vocab_size, config.tie_word_embeddings
    queries = QUERY_NAMES if opset.name == "portable" and query_scale(config) else []
    for table in rope_names(config) + queries:
        yield Weight(TensorSpec(table, "float32", (shape.context, config.head_dim // 2)), looked_up=True)
    head_flops = 2 * hidden * vocabulary
    for spec in opset.matrix("model.embed_tokens", vocabulary, hidden, shape):
        yield Weight(spec, head_flops if tied else 0, last_only=True, looked_up=True)
    for layer in range(config.num_hidden_layers):
        yield from _fused_layer(config, shape, layer) if opset.fused_layer else _layer(config, shape, opset, layer)
    if not tied:
        for spec in opset.matrix("lm_head", vocabulary, hidden, shape):
            yield Weight(spec, head_flops, last_only=True)
    yield Weight(TensorSpec("model.norm.weight", "float32", (hidden,)))


def _fused_layer(config: LlamaConfig, shape: Shape, layer: int) -> Iterator[Weight]:
    for spec in layer_tensors(config, shape, layer):
        name = spec.name.removesuffix(".weight")
        parts = JOINED.get(name.rpartition(".")[2], (name,))
        yield Weight(spec, _flops(config, parts) if spec.name.endswith("_proj.weight") else 0)


def _layer(config: LlamaConfig, shape: Shape, opset: OpSetSpec, layer: int) -> Iterator[Weight]:
    name = f"model.layers.{layer}"
    for norm, size in layer_norms(config).items():
        yield Weight(TensorSpec(f"{name}.{norm}.weight", "float32", (size,)))
    qkv = [("qkv_proj", JOINED["qkv_proj"])] if opset.joined_qkv else [(f"{x}_proj", (f"{x}_proj",)) for x in "qkv"]
    for linear, parts in [*qkv, ("o_proj", ("o_proj",))]:
        yield from _linear(config, shape, opset, f"{name}.self_attn.{linear}", parts)
    for linear in ("gate_proj", "up_proj", "down_proj"):
        yield from _linear(config, shape, opset, f"{name}.mlp.{linear}", (linear,))


def _linear(config: LlamaConfig, shape: Shape, opset: OpSetSpec, name: str, parts: Sequence[str]) -> Iterator[Weight]:
    """The tensors of a linear layer that joins the checkpoint's layers `parts`."""
    sizes = [linear_sizes(config, part) for part in parts]
    outer, inner, has_bias = sum(n for n, _, _ in sizes), sizes[0][1], sizes[0][2]
    matrix, *scales = opset.matrix(name, outer, inner, shape)
    yield Weight(matrix, _flops(config, parts))
    yield from map(Weight, scales)
    if has_bias:
        yield Weight(TensorSpec(f"{name}.bias", opset.bias_dtype, (outer,)))


def _flops(config: LlamaConfig, parts: Sequence[str]) -> int:
    return sum(2 * n * k for n, k, _ in (linear_sizes(config, part) for part in parts))


def file_bytes(specs: Sequence[TensorSpec], are_inputs: bool) -> int:
    """Return the size of the file that export writes these tensors to.

    Args:
        are_inputs: the file is weights.safetensors. If not, it is the data file of a graph.
    """
    padded = sum(round_up(spec.nbytes, ALIGNMENT) for spec in specs)
    return padded + len(encode_header(specs, alignment=ALIGNMENT) if are_inputs else HEADER)


def parameters(config: LlamaConfig) -> int:
    """Return the number of elements in the checkpoint's tensors."""
    names = [f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")]
    linear = sum(n * k + n * bias for n, k, bias in (linear_sizes(config, name) for name in names))
    tables = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
    return config.num_hidden_layers * (linear + sum(layer_norms(config).values())) + config.hidden_size + tables


def cache_token_bytes(config: LlamaConfig, cache: str) -> int:
    """Return the bytes of one position of one row: the keys and values of all layers.

    Each head of an int8 cache adds a float16 scale.
    """
    head = config.head_dim * DTYPE_BYTES[cache] + (DTYPE_BYTES["float16"] if cache == "int8" else 0)
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head
