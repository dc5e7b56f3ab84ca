"""Bytes and operations of each pass, and the memory of an artifact, computed from the config alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgellama.kernels.ascend.chips import Board

from ..graph_spec import Shape
from ..network.config import LlamaConfig
from ..opsets.specs import CPU, PORTABLE, OpSetSpec
from ..targets import TARGETS
from .memory import LIBRARIES, Memory, load_copies
from .tensors import Weight, cache_token_bytes, file_bytes, weights


@dataclass(frozen=True)
class Pass:
    """One run of the graph.

    Attributes:
        bucket: the tokens per row.
        start: the tokens of each row that the cache has before the run.
        weight_bytes, cache_bytes: what the run must read at least.
        flops: operations; a multiplication and an addition are two.
        attention_flops: those of them that multiply queries with keys, and weights with values.
    """

    bucket: int
    start: int
    weight_bytes: int
    cache_bytes: int
    flops: int
    attention_flops: int

    @property
    def bytes(self) -> int:
        """All bytes that the run must read at least."""
        return self.weight_bytes + self.cache_bytes


@dataclass(frozen=True)
class Plan:
    """A model on a target.

    Attributes:
        target: a key of TARGETS.
        shape: the shape at the largest bucket.
        buckets: all buckets, 1 (decode) first.
    """

    config: LlamaConfig
    target: str
    shape: Shape
    buckets: tuple[int, ...]

    @property
    def opset(self) -> OpSetSpec:
        """The op set of the target."""
        return TARGETS[self.target].opset

    def weights(self) -> list[Weight]:
        """Return every stored tensor of the weights."""
        return weights(self.config, self.shape, self.target)

    def step_weight_bytes(self) -> int:
        """Return the bytes of weights that a pass of any bucket reads: all tensors except those looked up by row."""
        return sum(weight.spec.nbytes for weight in self.weights() if weight.read_whole)

    def weights_file(self) -> int:
        """Return the size of the file with the weights."""
        return file_bytes([weight.spec for weight in self.weights()], self.opset.weights_are_inputs)

    def cache_bytes(self) -> int:
        """Return the size of the whole KV cache."""
        return self.shape.rows * self.shape.context * cache_token_bytes(self.config, self.shape.cache)

    def memory(self) -> Memory:
        """Return the memory that memory.py computes from an artifact. The intermediate results are an estimate."""
        size = self.weights_file()
        return Memory(
            weights=size,
            copies=load_copies(self.target, size, self.cache_bytes()),
            cache=self.cache_bytes(),
            activations=self.workspace(self.buckets[-1]),
            libraries=LIBRARIES,
        )

    def gears(self) -> int:
        """Return the bytes of the intermediate results of all buckets but the largest.

        No measurement on a board shows whether the gears of a device share this memory. The plan assumes that they do
        not.
        """
        if self.shape.chip is None:
            return 0
        return sum(self.workspace(bucket) for bucket in self.buckets[:-1])

    def total(self) -> int:
        """Return all memory that the artifact needs at run time, in bytes."""
        return self.memory().total + self.gears()

    def workspace(self, bucket: int) -> int:
        """Estimate the bytes of intermediate results that are alive at once: in a layer or at the logits."""
        config, tokens = self.config, self.shape.rows * bucket
        hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        qkv = (heads + 2 * groups) * dim
        if self.opset is CPU:  # float32; the kernel of a layer keeps the results of all its parts
            layer = 4 * (2 * hidden + qkv + heads * dim + inner)
        elif self.opset is PORTABLE:  # float32; the joined scores of the cache and the call's own tokens, twice
            scores = 2 * heads * (self.shape.context + bucket)
            layer = 4 * (hidden + max(3 * inner, 2 * qkv + scores))
        else:  # a float32 residual stream, float16 products
            layer = 4 * hidden + 2 * (hidden + max(qkv + heads * dim, 4 * inner))
        logits = 4 * self.shape.rows * (config.vocab_size + hidden)
        return max(tokens * layer, logits)

    def cost(self, bucket: int, start: int) -> Pass:
        """Return the pass in which every row has `bucket` new tokens after `start` tokens in the cache."""
        config, rows = self.config, self.shape.rows
        tokens = rows * bucket
        flops = sum((rows if weight.last_only else tokens) * weight.flops for weight in self.weights())
        seen = 0  # positions that each token of a row attends to, summed over tokens and layers
        read = 0  # positions of a row's cache that the pass reads, summed over layers
        for window in config.windows:
            limit = window or self.shape.context
            seen += sum(min(position + 1, limit) for position in range(start, start + bucket))
            read += min(start, limit - 1)
        attention = rows * 4 * seen * config.num_attention_heads * config.head_dim  # q k^T, and softmax times v
        position = cache_token_bytes(config, self.shape.cache) // config.num_hidden_layers
        return Pass(bucket, start, self.step_weight_bytes(), rows * read * position, flops + attention, attention)

    def passes(self) -> list[Pass]:
        """Return decode after half the context and after all of it, and each prefill bucket on an empty cache."""
        context = self.shape.context
        decode = sorted({context // 2, context - 1})
        return [self.cost(1, start) for start in decode] + [self.cost(b, 0) for b in self.buckets if b > 1]

    def with_context(self, context: int) -> Plan:
        """Return the plan with another context, without the buckets that exceed it."""
        buckets = tuple(bucket for bucket in self.buckets if bucket <= context)
        return replace(self, shape=replace(self.shape, context=context, tokens=buckets[-1]), buckets=buckets)

    def largest_context(self, board: Board) -> int:
        """Return the largest context that fits the board and that the model supports; 0 if none fits."""
        fits, too_many = 0, self.config.longest_context + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.with_context(middle).total() <= board.available:
                fits = middle
            else:
                too_many = middle
        return fits


def roofline(work: Pass, bandwidth: float, flops: float) -> tuple[float, float]:
    """Return the minimum seconds for reading and for computing. The pass takes at least the longer of the two.

    Args:
        bandwidth: bytes per second.
        flops: operations per second.
    """
    return work.bytes / bandwidth, work.flops / flops


def prompt_passes(plan: Plan, chunks: Sequence[tuple[int, int]]) -> list[Pass]:
    """Return the passes of a prompt.

    Args:
        chunks: (bucket, tokens) of each. A pass computes its whole bucket, with padding.
    """
    found, start = [], 0
    for bucket, tokens in chunks:
        found.append(plan.cost(bucket, start))
        start += tokens
    return found
