"""Bytes and operations of every pass, and the memory that an artifact takes: from the config alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgellama.kernels.ascend.chips import Board

from ..graph_spec import Shape
from ..network.config import LlamaConfig
from ..targets import TARGETS
from .memory import LIBRARIES, Memory, load_copies
from .tensors import Weight, cache_token_bytes, file_bytes, weights


@dataclass(frozen=True)
class Pass:
    """One run of the graph at a bucket, every row behind `start` tokens. bytes: what it must at least read."""

    bucket: int
    start: int
    weight_bytes: int
    cache_bytes: int
    flops: int

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes


@dataclass(frozen=True)
class Plan:
    """A model on a target. shape: at the largest bucket."""

    config: LlamaConfig
    target: str
    shape: Shape
    buckets: tuple[int, ...]

    def weights(self) -> list[Weight]:
        return weights(self.config, self.shape, self.target)

    def step_weight_bytes(self) -> int:
        """What a pass of any bucket reads: all but what is looked up by row."""
        return sum(weight.spec.nbytes for weight in self.weights() if weight.read_whole)

    def weights_file(self) -> int:
        return file_bytes([weight.spec for weight in self.weights()], TARGETS[self.target].opset.weights_are_inputs)

    def cache_bytes(self) -> int:
        return self.shape.rows * self.shape.context * cache_token_bytes(self.config, self.shape.cache)

    def memory(self) -> Memory:
        """What exporter.plan.memory reads from an artifact, with its intermediate results estimated."""
        size = self.weights_file()
        return Memory(
            weights=size,
            copies=load_copies(self.target, size, self.cache_bytes()),
            cache=self.cache_bytes(),
            activations=self.workspace(self.buckets[-1]),
            libraries=LIBRARIES,
        )

    def gears(self) -> int:
        """Intermediate results of the buckets but the largest. Whether a device shares them between gears is not known
        before a board is met; here they count."""
        if not self.target.startswith("ascend"):
            return 0
        return sum(self.workspace(bucket) for bucket in self.buckets[:-1])

    def total(self) -> int:
        return self.memory().total + self.gears()

    def workspace(self, bucket: int) -> int:
        """Bytes of the intermediate results that are alive at once in a layer, or of the logits where they are more."""
        config, tokens = self.config, self.shape.rows * bucket
        hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        qkv = (heads + 2 * groups) * dim
        if self.target == "cpu":  # float32; the kernel of a layer keeps all of its parts' results
            layer = 4 * (2 * hidden + qkv + heads * dim + inner)
        elif self.target == "portable":  # float32; the scores of the cache and of the call's own tokens, twice joined
            scores = 2 * heads * (self.shape.context + bucket)
            layer = 4 * (hidden + max(3 * inner, 2 * qkv + scores))
        else:  # a float32 residual stream, float16 products
            layer = 4 * hidden + 2 * (hidden + max(qkv + heads * dim, 4 * inner))
        logits = 4 * self.shape.rows * (config.vocab_size + hidden)
        return max(tokens * layer, logits)

    def cost(self, bucket: int, start: int) -> Pass:
        """Of a pass in which every row feeds `bucket` tokens behind `start`: multiply and add are two operations."""
        config, rows = self.config, self.shape.rows
        tokens = rows * bucket
        flops = sum((rows if weight.last_only else tokens) * weight.flops for weight in self.weights())
        seen = read = 0  # by each token, summed; cache positions of a row, of all layers
        for window in config.windows:
            limit = window or self.shape.context
            seen += sum(min(position + 1, limit) for position in range(start, start + bucket))
            read += min(start, limit - 1)
        flops += rows * 4 * seen * config.num_attention_heads * config.head_dim  # q k^T, and its softmax times v
        position = cache_token_bytes(config, self.shape.cache) // config.num_hidden_layers
        return Pass(bucket, start, self.step_weight_bytes(), rows * read * position, flops)

    def passes(self) -> list[Pass]:
        """Decode behind half the context and behind all of it; each prefill bucket on an empty cache."""
        context = self.shape.context
        decode = sorted({context // 2, context - 1})
        return [self.cost(1, start) for start in decode] + [self.cost(b, 0) for b in self.buckets if b > 1]

    def with_context(self, context: int) -> Plan:
        buckets = tuple(bucket for bucket in self.buckets if bucket <= context)
        return replace(self, shape=replace(self.shape, context=context, tokens=buckets[-1]), buckets=buckets)

    def largest_context(self, board: Board) -> int:
        """The most tokens a row that fit the board, of those that the model was made for; 0 where none fits."""
        fits, too_many = 0, self.config.max_position_embeddings + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.with_context(middle).total() <= board.available:
                fits = middle
            else:
                too_many = middle
        return fits


def roofline(work: Pass, bandwidth: float, flops: float) -> tuple[float, float]:
    """Seconds that reading and computing take at least: the pass takes no less than the longer."""
    return work.bytes / bandwidth, work.flops / flops


def prompt_passes(plan: Plan, chunks: Sequence[tuple[int, int]]) -> list[Pass]:
    """The passes of a prompt cut into (bucket, tokens): each computes its bucket, padding too."""
    found, start = [], 0
    for bucket, tokens in chunks:
        found.append(plan.cost(bucket, start))
        start += tokens
    return found
