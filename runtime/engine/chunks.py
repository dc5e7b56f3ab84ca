"""How a call is split into passes: which buckets to run, and how many tokens each pass holds."""

from __future__ import annotations

import functools

# What a pass costs beside its tokens, in tokens: it reads every weight once. Measured on host CPUs it is about 10;
# where memory is slower against arithmetic it is more.
PASS_COST = 32
# The cpu op set's kernels skip padding; what is left of its cost is measured. Elsewhere it costs what a token does.
CPU_PADDING = 0.125


def plan_chunks(tokens: int, buckets: tuple[int, ...], padding: float = 1.0) -> list[tuple[int, int]]:
    """Split a call into (bucket, tokens in it), the cheapest way, counting a pass as its tokens + PASS_COST.

    padding: what a place without a token costs, in tokens. So one token over a bucket's edge does not cost the next
    bucket, unless padding is cheap. Only the last chunk holds padding.

    >>> plan_chunks(1100, (1, 32, 128, 512)), plan_chunks(129, (1, 32, 128, 512))
    ([(512, 512), (512, 512), (128, 76)], [(128, 128), (1, 1)])
    >>> plan_chunks(42, (1, 32, 128, 512)), plan_chunks(42, (1, 32, 128, 512), padding=0.125)
    ([(32, 32), (32, 10)], [(128, 42)])
    """
    first = _first_buckets(buckets, padding)
    chunks = []
    while tokens > 0:
        bucket = first[min(tokens, buckets[-1])]
        chunks.append((bucket, min(bucket, tokens)))
        tokens -= bucket
    return chunks


@functools.cache
def _first_buckets(buckets: tuple[int, ...], padding: float) -> list[int]:
    """For 0 .. largest bucket tokens, the bucket to begin with: by the cheapest cover of each smaller count."""
    first, cost = [0], [0.0]
    for tokens in range(1, buckets[-1] + 1):
        ways = []
        for bucket in reversed(buckets):  # of equal ways the first counts: the larger bucket, so fewer passes
            rest = cost[tokens - bucket] if bucket <= tokens else 0
            held = min(bucket, tokens)
            ways.append((held + padding * (bucket - held) + PASS_COST + rest, bucket))
        best = min(ways, key=lambda way: way[0])
        cost.append(best[0])
        first.append(best[1])
    return first
