"""Estimates how long a pass takes on a board of an Ascend target.

The roofline of cost.py divides by the published peaks. This estimate divides by the shares of them that the performance
model of the kernels gives (kernels/ascend/MODEL.md), and adds the launch of every operator. It is an estimate with a
pessimistic and an optimistic end: no board has been measured.
"""

from __future__ import annotations

from edgellama.kernels.ascend.chips import CHIPS, Board
from edgellama.kernels.ascend.speeds import LAUNCH_SECONDS, MATRIX_FLOPS, SPEEDS, Range

from .cost import Pass, Plan

# Operators that the graph launches in each layer, and besides. A chip without RmsNorm computes a norm in several.
LAYER_OPERATORS = {True: 18, False: 30}
OTHER_OPERATORS = 12


def seconds(plan: Plan, board: Board, work: Pass) -> Range | None:
    """Return the pessimistic and the optimistic seconds of a pass; None for a host, or without the board's peaks."""
    if plan.target not in SPEEDS or board.bandwidth is None or board.flops is None:
        return None
    low = _seconds(plan, board.bandwidth, board.flops, work, 0)
    high = _seconds(plan, board.bandwidth, board.flops, work, 1)
    return low, high


def operators(plan: Plan) -> int:
    """Return the operators that a pass launches."""
    each = LAYER_OPERATORS[CHIPS[plan.target].has("RmsNorm")]
    return plan.config.num_hidden_layers * each + OTHER_OPERATORS


def _seconds(plan: Plan, bandwidth: float, flops: float, work: Pass, end: int) -> float:
    speeds = SPEEDS[plan.target]
    matrices = work.weight_bytes / (bandwidth * speeds.matrix[end])
    attention = work.cache_bytes / (bandwidth * speeds.decode[end])
    if work.bucket > 1:
        products = work.flops - work.attention_flops
        matrices = max(matrices, products / (flops * MATRIX_FLOPS[end]))
        attention = work.attention_flops / (flops * speeds.prefill[end])
    return matrices + attention + operators(plan) * LAUNCH_SECONDS[end]
