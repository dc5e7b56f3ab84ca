"""What the performance model says about each chip's kernels, for `edgellama plan`, which has no compiler for it.

Each pair is the pessimistic and the optimistic end. tests/ascend/test_model.py compares them with the model. No board
has been measured.
"""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Speeds:
    """Shares of a board's peaks.

    Attributes:
        decode: of the bandwidth, in decode attention over 1,024 to 4,096 positions
        matrix: of the bandwidth, in a product of one row; the model's share for LmHead serves for all products
        prefill: of the FLOPS, in prefill attention of 128 to 512 tokens
    """

    decode: Range
    matrix: Range
    prefill: Range


SPEEDS = {
    "ascend310p": Speeds(decode=(0.37, 0.80), matrix=(0.64, 0.83), prefill=(0.006, 0.036)),
    "ascend310b": Speeds(decode=(0.51, 0.97), matrix=(0.58, 0.91), prefill=(0.007, 0.076)),
    "ascend910b": Speeds(decode=(0.39, 0.99), matrix=(0.57, 0.80), prefill=(0.012, 0.096)),
}
# Assumed: no public source states them for these boards.
MATRIX_FLOPS: Range = (0.3, 0.8)  # the share of the FLOPS in products of many rows
LAUNCH_SECONDS: Range = (10e-6, 2e-6)  # of one operator
