"""How a call is split into passes: which buckets to run, and how many tokens each pass holds."""

from __future__ import annotations

import functools

# The cost of a pass besides its tokens, in tokens: a pass reads every weight once. Host CPUs measure about 10; it is
# more where memory is slower in relation to arithmetic.
PASS_COST = 32
# The cost of a padding token on the cpu op set, whose kernels skip most of its work (measured). Elsewhere it is 1.
CPU_PADDING = 0.125


def plan_chunks(tokens: int, buckets: tuple[int, ...], padding: float = 1.0) -> list[tuple[int, int]]:
    """Split a call into chunks, the cheapest way; a pass costs its tokens + PASS_COST.

    One token more than a bucket therefore does not cost the whole next bucket, unless padding is cheap.

    Args:
        tokens: of the longest row.
        buckets: ascending.
        padding: the cost of a padding token, in tokens.

    Returns:
        (bucket, tokens in it) per chunk; only the last chunk contains padding.

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
    """Return the first bucket of the cheapest cover, for 0 .. largest bucket tokens (dynamic programming)."""
    first, cost = [0], [0.0]
    for tokens in range(1, buckets[-1] + 1):
        ways = []
        for bucket in reversed(buckets):  # of equal costs the first wins: the larger bucket, so fewer passes
            held = min(bucket, tokens)
            ways.append((held + padding * (bucket - held) + PASS_COST + cost[tokens - held], bucket))
        best = min(ways, key=lambda way: way[0])
        cost.append(best[0])
        first.append(best[1])
    return first
