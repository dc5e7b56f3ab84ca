"""The cpu op set: the custom kernels of kernels/cpu, one per layer; weights as inputs, caches written in place.

Weights are packed (kernels/weight_format.py) and are not part of a graph: the graphs of all buckets read one
memory-mapped weights.safetensors. Measurements decided what to fuse. A node costs a few microseconds for dispatch and
thread synchronisation, which is the time to read 100 KB of weights; a layer of a small model has 3.7 MB. So a layer is
one node. Inside it, a linear layer computes the norm while it reads its input, and adds the residual while it writes.
q, k and v are one matrix; gate and up are another.

Letters: B rows, S tokens per row, H query heads, G key/value heads, D head size, C cache capacity, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mindspore
from mindspore import Parameter, ParameterTuple, nn
from mindspore.common.initializer import initializer
from mindspore.ops import PrimitiveWithInfer

from edgellama.artifact.manifest import TensorSpec
from edgellama.artifact.safetensors import ALIGNMENT
from edgellama.artifact.step_graph import STRETCH
from edgellama.kernels.weight_format import round_up

from ..checkpoint.base import Checkpoint
from ..checkpoint.row_blocks import Piece, tensor_pieces
from ..graph_spec import Shape
from ..network.config import LlamaConfig
from ..network.layer_sizes import linear_sizes, windows
from ..network.rope import rope_index, rope_names, rope_table
from .cpu_weights import abi_of, bias_value, format_of, layer_tensors, layer_variant, packed_matrix, weight_pieces
from .specs import CPU

SPEC = CPU
CACHE_KINDS = {"float32": "f32", "float16": "f16", "int8": "s8"}  # numpy name -> the kernel's


def stored(weight: TensorSpec, config: LlamaConfig, shape: Shape) -> list[TensorSpec]:
    """Return the tensors of weights.safetensors that make up one weight of the graphs."""
    if not weight.name.endswith(STRETCH):
        return [weight]
    return layer_tensors(config, shape, int(weight.name.removesuffix(STRETCH).rpartition(".")[2]))


def pieces(name: str, checkpoint: Checkpoint, shape: Shape) -> Iterator[Piece]:
    """Yield the pieces of the tensor `name` of weights.safetensors."""
    if name.startswith("rope."):
        return iter([lambda: rope_table(name, checkpoint.config, shape.context)])
    if name.endswith(".bias"):
        return iter([lambda: bias_value(name, checkpoint)])
    if "norm" in name:
        return tensor_pieces(name, checkpoint)
    return weight_pieces(name, checkpoint, format_of(name, shape.weights))


def operator(op: str, abi: int, name: str, infer_shape: Any, **attributes: object) -> PrimitiveWithInfer:
    """Return the custom operator `op`, whose result is float32.

    Args:
        abi: of the kernels, as the graph needs it.
        name: its name in the graph and in error messages.
        infer_shape: the shape of the result, given the shapes of the inputs.
        attributes: the kernel's attributes; they become text, as the kernels read them.
    """
    kind = type(
        op,
        (PrimitiveWithInfer,),
        {
            "infer_shape": lambda self, *shapes: infer_shape(*shapes),
            "infer_dtype": lambda self, *dtypes: mindspore.float32,
        },
    )
    primitive = kind(op)
    for key, attribute in {"abi": abi, "name": name, **attributes}.items():
        primitive.add_prim_attr(key, str(attribute))
    return primitive


def parameter(name: str, *shape: int, dtype: Any = mindspore.float32) -> Parameter:
    """Return a weight without data: tracing needs the shape only, so no memory is allocated."""
    return Parameter(initializer("zeros", shape, dtype), name=name, requires_grad=False)


def packed(name: str, outer: int, inner: int, shape: Shape) -> Parameter:
    """Return the packed matrix [outer, inner]: uint8 [panels, bytes per panel]."""
    return parameter(name, *packed_matrix(name, outer, inner, shape).shape, dtype=mindspore.uint8)


class Prepare(nn.Cell):
    """Returns the step's inputs and the rotary tables: tokens, start, length, then cos, sin of each kind of table."""

    def __init__(self, config: LlamaConfig, shape: Shape):
        super().__init__(auto_prefix=False)
        names = rope_names(config)
        self.tables = ParameterTuple([parameter(name, shape.context, config.head_dim // 2) for name in names])

    def construct(self, step: Any) -> Any:
        for table in self.tables:
            step = (*step, table)
        return step


class Embedding(nn.Cell):
    """Looks up the embedding of each token in a packed matrix, which the head shares if they are tied."""

    def __init__(self, config: LlamaConfig, shape: Shape):
        super().__init__(auto_prefix=False)
        name, width = "model.embed_tokens.weight", config.hidden_size
        self.weight = packed(name, config.vocab_size, width, shape)
        self.embedding = operator(
            "EdgeEmbedding",
            abi_of(config, shape.weights),
            "model.embed_tokens",
            lambda tokens, weight, length: [*tokens, width],
            format=format_of(name, shape.weights),
            vocabulary=config.vocab_size,
            width=width,
        )

    def construct(self, step: Any) -> Any:
        return self.embedding(step[0], self.weight, step[2])  # [B, S, E]


class DecoderLayer(nn.Cell):
    """kernels.reference.decoder_layer: a whole layer in one node, which writes the caches in place.

    Its weights are one input, the range of weights.safetensors that contains them: MindSpore Lite spends more than a
    microsecond on each input of a graph in every step.
    """

    def __init__(self, config: LlamaConfig, shape: Shape, layer: int):
        super().__init__(auto_prefix=False)
        name = f"model.layers.{layer}"
        size = sum(round_up(tensor.nbytes, ALIGNMENT) for tensor in layer_tensors(config, shape, layer))
        self.weights = parameter(f"{name}{STRETCH}", size, dtype=mindspore.uint8)
        self.layer = operator(
            "EdgeDecoderLayer",
            abi_of(config, shape.weights),
            name,
            lambda h, *rest: h,
            format=format_of(f"{name}.weight", shape.weights),
            heads=config.num_attention_heads,
            scale=config.scale,
            window=windows(config, shape.context)[layer],
            cache=CACHE_KINDS[shape.cache],
            inner=config.intermediate_size,
            **{f"{part}_bias": int(linear_sizes(config, f"{part}_proj")[2]) for part in ("q", "o", "gate", "down")},
            eps=config.stream_norm_eps,
            **layer_variant(config),
        )
        self.rope = 3 + rope_index(config, layer)

    def construct(self, h: Any, step: Any, caches: Any) -> Any:
        _, start, length = step[:3]
        cos, sin = step[self.rope], step[self.rope + 1]
        return self.layer(h, start, length, cos, sin, self.weights, *caches), ()


class Head(nn.Cell):
    """The final norm and the logits [B, V] of each row's last valid token."""

    def __init__(self, config: LlamaConfig, shape: Shape, embedding: Parameter):
        super().__init__(auto_prefix=False)
        name, vocabulary, hidden = "lm_head.weight", config.vocab_size, config.hidden_size
        tied = config.tie_word_embeddings
        self.weight = embedding if tied else packed(name, vocabulary, hidden, shape)
        self.gamma = parameter("model.norm.weight", hidden)
        self.head = operator(
            "EdgeHead",
            abi_of(config, shape.weights),
            "lm_head",
            lambda h, *rest: [h[0], vocabulary],
            format=format_of(name, shape.weights),
            vocabulary=vocabulary,
            eps=config.stream_norm_eps,
            **({} if config.final_logit_softcapping is None else {"softcap": config.final_logit_softcapping}),
        )

    def construct(self, h: Any, step: Any) -> Any:
        return self.head(h, self.weight, step[2], self.gamma)
