"""The network: the decoder of arXiv:2302.13971 and its relatives (family.py), written once for every op set.

This module defines what a step computes, in reading order. The op set (`ops`, a module of opsets/) defines how each
part is computed and which checkpoint tensors it reads. Prefill and decode use the same code; they differ in the number
of tokens.
"""

from __future__ import annotations

from typing import Any

from mindspore import nn

from ..graph_spec import Shape
from .config import LlamaConfig
from .family import POST_ATTENTION, POST_MLP, PRE_ATTENTION, PRE_MLP


class DecoderLayer(nn.Cell):
    """One block: h [tokens, hidden] -> (h, the caches' new values if the graph returns them, else an empty tuple)."""

    def __init__(self, config: LlamaConfig, shape: Shape, ops: Any, layer: int):
        super().__init__(auto_prefix=False)
        name = f"model.layers.{layer}"
        norms = {place: f"{name}.{norm}" for place, norm in config.family.norms.items()}
        self.norm_qkv = ops.NormQKV(config, shape, norms.get(PRE_ATTENTION), f"{name}.self_attn")
        self.attention = ops.Attention(config, shape, f"{name}.self_attn", layer)
        self.o_proj = ops.LinearAdd(config, shape, f"{name}.self_attn.o_proj", norms.get(POST_ATTENTION))
        # The names of these cells are part of the graph's format: a node has the path to its cell in its name.
        self.norm_swiglu = ops.NormGLU(config, shape, norms.get(PRE_MLP), f"{name}.mlp")
        self.down_proj = ops.LinearAdd(config, shape, f"{name}.mlp.down_proj", norms.get(POST_MLP))

    def construct(self, h: Any, step: Any, caches: Any) -> Any:
        attended, written = self.attention(self.norm_qkv(h, step), step, caches)
        h = self.o_proj(attended, h, step)
        h = self.down_proj(self.norm_swiglu(h, step), h, step)
        return h, written


def decoder_layer(config: LlamaConfig, shape: Shape, ops: Any, layer: int) -> nn.Cell:
    """Return DecoderLayer, or the op set's own layer if it has one operator for the whole block."""
    if ops.SPEC.fused_layer:
        return ops.DecoderLayer(config, shape, layer)
    return DecoderLayer(config, shape, ops, layer)


class Llama(nn.Cell):
    """One step: (the op set's inputs, each layer's caches) -> (logits [B, V], the layers' new cache values)."""

    def __init__(self, config: LlamaConfig, shape: Shape, ops: Any):
        super().__init__(auto_prefix=False)
        self.prepare = ops.Prepare(config, shape)
        self.embed_tokens = ops.Embedding(config, shape)
        self.layers = nn.CellList(
            [decoder_layer(config, shape, ops, i) for i in range(config.num_hidden_layers)], auto_prefix=False
        )
        self.head = ops.Head(config, shape, self.embed_tokens.weight)
        self.step_inputs = len(ops.SPEC.step_inputs(config, shape))
        self.layer_caches = len(ops.SPEC.cache_inputs(config, shape)) // config.num_hidden_layers

    def construct(self, *inputs: Any) -> Any:
        step = self.prepare(inputs[: self.step_inputs])
        h = self.embed_tokens(step)
        written = ()
        first = self.step_inputs
        for layer in self.layers:
            h, new = layer(h, step, inputs[first : first + self.layer_caches])
            written = written + new
            first = first + self.layer_caches
        return (self.head(h, step), *written)
