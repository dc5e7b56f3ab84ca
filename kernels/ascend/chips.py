"""The Ascend chips that the targets are for, and the boards that carry them: the one table of them.

Everything else reads this table: the targets and the op set, the checks of a model against a chip, the conversion, the
plan, the check of a device, board-check, and the stand-in for the chips (standin.py writes it a header). This module
uses the standard library only.

No chip has been tried. Each fact comes from public documentation:

- SoC versions: asc-devkit, cmake, the lists ascend310p_list, ascend310b_list and ascend910b_list.
- Buffers and instructions: CANN's Ascend C documentation; L1 and L0C of the 310P and 310B, which it does not state, are
  those of asc-devkit's matmul_config_utils.h. On a board the operators ask CANN for the sizes (op_host/host.h).
- Workspace: asc-devkit, RESERVED_WORKSPACE of kernel_utils_constants.h, and GetLibApiWorkSpaceSize.
- Operators: MindSpore's operator adapters, and the product tables of CANN's operator documentation. CANN has SwiGlu for
  the 310P and the 910B, but MindSpore's public sources show no adapter that reaches it.
- Atlas 200I DK A2: hiascend.com, Atlas200IDKA2DeveloperKit, basic specifications: Ascend 310B, one DaVinci V300 core at
  500 MHz, 4 TFLOPS FP16, 8 TOPS INT8; LPDDR4X at 3,200 Mbps, 64 bits (25.6 GB/s), 4 GB. The 20-TOPS parts:
  hiascend.com, Atlas 200I A2, `npu-smi set -t nve-level` (20T and 8T of one chip); FP16 is half of INT8, as there.
- Atlas 300I Pro and Duo: e.huawei.com, product pages: 24 GB LPDDR4X, 204.8 GB/s, 140 TOPS INT8, 70 TFLOPS FP16 a chip;
  the Duo has two, together 408 GB/s and 280 TOPS. Of 24 GB npu-smi shows 21,534 MiB, 1,074 of them in use when idle
  (gitee.com/ascend/ModelZoo-PyTorch, AASIST's conversion log).
- Atlas 800I A2: gitcode.com/cann/ops-nn, docs/zh/develop/cross_platform_migration_guide.md: 64 GB, 1.6 TB/s;
  gitcode.com/Ascend/msmodeling, device profiles ATLAS_800_A2_280T_64G and _32G_PCIE: 280 TFLOPS FP16, 1.6 and 0.8 TB/s.
- SoC version of a board: as `npu-smi info` prints it in public posts. A board without such a post has none here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# Operators of our graphs by MindIR's name -> CANN's operators that they compile to: any one of them is enough (older
# releases have forms that end in D). Empty: the operator compiles to no kernel, or to one of CUSTOM_OPERATORS.
OPERATORS: dict[str, tuple[str, ...]] = {
    "Add": ("Add",),
    "Cast": ("Cast",),
    "Concat": ("ConcatD", "ConcatV2D", "Concat", "ConcatV2"),
    "Custom": (),
    "Div": ("Div", "RealDiv"),
    "Gather": ("GatherV2", "Gather"),
    "MakeTuple": (),
    "MatMul": ("MatMulV2", "MatMul", "BatchMatMulV2"),
    "Mul": ("Mul",),
    "ReduceMean": ("ReduceMean", "ReduceMeanD"),
    "Reshape": (),
    "RmsNorm": ("RmsNorm",),
    "Sigmoid": ("Sigmoid",),
    "Slice": ("Slice", "SliceD"),
    "Sqrt": ("Sqrt",),
    "Square": ("Square",),
    "Sub": ("Sub",),
    "Transpose": ("Transpose", "TransposeD"),
    "TupleGetItem": (),
    "WeightQuantBatchMatmul": ("WeightQuantBatchMatmulV2",),
}
FORMER_OPERATORS = ("WeightQuantBatchMatmul",)  # of int8 artifacts of 0.1.0; QuantLinear took its place
# Of this package, built for every chip.
CUSTOM_OPERATORS = ("FusedAttention", "SplitAttention", "JoinAttention", "LmHead", "QuantLinear")
MAX_PARTS = 64  # of a key/value head in decode; op_host/attention_tiling.h has the same limit
POSITIONS_PER_PART = 256  # for fewer, a part's own start and its record cost too much
MAX_QUERY_HEADS = 32  # query heads a key/value head that the attention kernels take, if the buffers have room

# What Ascend C offers on some of the chips only -> the stand-in's name for it (standin/standin/chip.h).
INSTRUCTIONS = {
    "DataCopyPad": "dataCopyPad",
    "Brcb": "brcb",
    "SyncAll": "hardSyncAll",
    "SyncAll with a workspace": "softSyncAll",
    "SetFlag and WaitFlag": "isasiFlags",  # TQueSync is there on every chip
    "Cast float to half with a rounding mode": "castFloatToHalfRounding",
    "ReduceOrder::ORDER_ONLY_VALUE": "reduceOnlyValue",
    "ReduceOrder::ORDER_ONLY_INDEX": "reduceOnlyIndex",
    "ReduceOrder::ORDER_INDEX_VALUE": "reduceIndexValue",
    "KERNEL_TASK_TYPE": "kernelTypes",
    "Matmul of float operands": "matmulFloatOperands",
    "MulAddDst of half into float": "mulAddDstMixed",
}

DK_A2 = "https://www.hiascend.com/document/detail/zh/Atlas200IDKA2DeveloperKit/latest/pd/pd_0004.html"
NVE_LEVEL = "https://www.hiascend.com/document/detail/zh/Atlas%20200I%20A2/2520/re/npu/npusmi_090.html"
PRO = "https://e.huawei.com/en/products/computing/ascend/atlas-300i-pro"
DUO = "https://e.huawei.com/en/products/computing/ascend/atlas-300i-duo"
ZOO = "https://gitee.com/ascend/ModelZoo-PyTorch"
OPS_NN = "https://gitcode.com/cann/ops-nn/blob/master/docs/zh/develop/cross_platform_migration_guide.md"
MSMODELING = "https://gitcode.com/Ascend/msmodeling"

SYSTEM_BYTES = 1_500_000_000  # of Linux, its services and CANN's host side on a board with one memory
USABLE = (21_534 - 1_074) / (24 * 1024)  # share of a card's memory, measured on the Atlas 300I Pro
SHARED = "memory is shared with the host's Linux, which keeps 1.5 GB"
LIKE_DK = "bandwidth as on the Atlas 200I DK A2"
LIKE_PRO = "the system keeps the share that it keeps on the Atlas 300I Pro"


@dataclass(frozen=True)
class Board:
    """A board, or one chip of a card with several.

    Attributes:
        memory, available: bytes of the chip's memory, and those that a process may use
        bandwidth: peak bytes a second; None if unknown
        flops: peak float16 operations a second, a multiply and an add being two; None if unknown
        soc: its SoC version; None if no public post shows it
        sources: addresses of the pages that state the figures
        assumed: what no public page states, in words
    """

    name: str
    memory: int
    available: int
    bandwidth: float | None = None
    flops: float | None = None
    sources: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    soc: str | None = None


@dataclass(frozen=True)
class Buffers:
    """Local memory of one core, in bytes."""

    unified: int
    l1: int
    l0a: int
    l0b: int
    l0c: int


@dataclass(frozen=True)
class Chip:
    """One chip, which is one target.

    Attributes:
        target: as TARGET=, and CANN's name of the compute unit
        name: as people write it
        soc_versions: CANN's names of its versions (ge.socVersion): "Ascend" and the name that `npu-smi info` prints
        products: product lines with the chip
        shares_memory: whether the NPU uses the host's memory instead of its own
        arch: the device compiler's __NPU_ARCH__
        split_cores: whether cube and vector instructions run on different cores
        cube_cores, vector_cores: their numbers; equal if the cores are not split
        buffers: local memory of a core
        reserved: bytes of unified buffer, and of L1, that CANN keeps for itself in a kernel that uses both kinds of
            core
        skipped_workspace: bytes at the start of an operator's workspace that its kernel does not get; the wrapper that
            CANN generates around it skips them
        library_workspace: bytes that CANN's GetLibApiWorkSpaceSize tells the tiling function to reserve
        matmul_needs_unified_buffer: whether the high-level Matmul needs a part of the unified buffer
        dtypes: numpy's names of the floating-point and quantized types that vector or cube instructions take
        missing_operators: of OPERATORS, those that CANN or MindSpore do not offer for it
        missing_instructions: of INSTRUCTIONS, those that Ascend C does not offer on it
        narrowed: head size -> the most query heads a key/value head, where that is fewer than MAX_QUERY_HEADS because
            the buffers have no room for more (op_host/attention_tiling.h computes it)
        boards: boards with the chip
    """

    target: str
    name: str
    soc_versions: tuple[str, ...]
    products: tuple[str, ...]
    shares_memory: bool
    arch: int
    split_cores: bool
    cube_cores: int
    vector_cores: int
    buffers: Buffers
    reserved: int
    skipped_workspace: int
    library_workspace: int
    matmul_needs_unified_buffer: bool
    dtypes: tuple[str, ...]
    missing_operators: frozenset[str]
    missing_instructions: frozenset[str]
    narrowed: Mapping[int, int] = field(default_factory=dict)
    boards: tuple[Board, ...] = ()

    @property
    def operators(self) -> list[str]:
        """MindIR's names of the operators that a graph for this chip may use, sorted."""
        return sorted(OPERATORS.keys() - self.missing_operators)

    def has(self, operator: str) -> bool:
        """Whether a graph for this chip may use the operator of this MindIR name."""
        return operator in OPERATORS and operator not in self.missing_operators

    def attention_parts(self, heads: int, positions: int) -> int:
        """The work items into which decode divides each row and key/value head, at most one per 256 positions.

        It is the smallest number with which the busiest core has at most a tenth more than the least possible work.

        Args:
            heads: rows times key/value heads
            positions: the cache positions that a token can see
        """
        work = {parts: -(-heads * parts // self.vector_cores) / parts for parts in range(1, MAX_PARTS + 1)}
        possible = [parts for parts in work if parts == 1 or parts * POSITIONS_PER_PART <= positions]
        least = min(work[parts] for parts in possible)
        return next(parts for parts in possible if work[parts] <= 1.1 * least)

    def max_query_heads(self, head_dim: int) -> int:
        """The most query heads a key/value head that the attention kernels take at this head size."""
        return self.narrowed.get(head_dim, MAX_QUERY_HEADS)


def _edge(name: str, soc: str | None, gib: int, tflops: float, assumed: tuple[str, ...], *sources: str) -> Board:
    return Board(name, gib * GIB, gib * GIB - SYSTEM_BYTES, 25.6e9, tflops * 1e12, sources, (SHARED, *assumed), soc)


def _card(
    name: str, soc: str, gib: int, bandwidth: float, tflops: float, assumed: tuple[str, ...], *sources: str
) -> Board:
    return Board(name, gib * GIB, int(gib * GIB * USABLE), bandwidth, tflops * 1e12, sources, assumed, soc)


_CHIPS = (
    Chip(
        target="ascend310p",
        name="Ascend 310P",
        soc_versions=(
            *("Ascend310P1", "Ascend310P3", "Ascend310P5", "Ascend310P7"),
            *("Ascend310P3Vir01", "Ascend310P3Vir02", "Ascend310P3Vir04", "Ascend310P3Vir08"),
        ),
        products=("Atlas 300I Duo", "300I Pro", "300V"),
        shares_memory=False,
        arch=2002,
        split_cores=False,
        cube_cores=8,
        vector_cores=8,
        buffers=Buffers(unified=256 * KIB, l1=1024 * KIB, l0a=64 * KIB, l0b=64 * KIB, l0c=256 * KIB),
        reserved=0,
        skipped_workspace=2 * MIB,
        library_workspace=2 * MIB,
        matmul_needs_unified_buffer=True,
        dtypes=("float32", "float16", "int8"),
        missing_operators=frozenset(),
        missing_instructions=frozenset(
            [
                "DataCopyPad",
                "SyncAll",
                "Cast float to half with a rounding mode",
                "ReduceOrder::ORDER_ONLY_VALUE",
                "ReduceOrder::ORDER_ONLY_INDEX",
                "Matmul of float operands",
            ]
        ),
        narrowed={192: 30, 208: 28, 224: 25, 240: 24, 256: 22},
        boards=(
            _card("Atlas 300I Pro, 24 GB", "Ascend310P3", 24, 204.8e9, 70, (), PRO, ZOO),
            _card("Atlas 300I Duo 48 GB, a chip", "Ascend310P3", 24, 204e9, 70, (LIKE_PRO,), DUO),
            _card("Atlas 300I Duo 96 GB, a chip", "Ascend310P3", 48, 204e9, 70, (LIKE_PRO,), DUO),
        ),
    ),
    Chip(
        target="ascend310b",
        name="Ascend 310B",
        soc_versions=("Ascend310B1", "Ascend310B2", "Ascend310B3", "Ascend310B4"),
        products=("OrangePi AIpro", "Atlas 200I A2", "Atlas 200I DK A2"),
        shares_memory=True,
        arch=3002,
        split_cores=False,
        cube_cores=1,
        vector_cores=1,
        buffers=Buffers(unified=256 * KIB, l1=1024 * KIB, l0a=64 * KIB, l0b=64 * KIB, l0c=128 * KIB),
        reserved=0,
        skipped_workspace=16 * MIB,
        library_workspace=2 * MIB,
        matmul_needs_unified_buffer=False,
        dtypes=("float32", "float16", "bfloat16", "int8"),
        missing_operators=frozenset(["RmsNorm", "WeightQuantBatchMatmul"]),
        missing_instructions=frozenset(
            [
                "Brcb",
                "SyncAll",
                "SyncAll with a workspace",
                "SetFlag and WaitFlag",
                "ReduceOrder::ORDER_ONLY_INDEX",
                "ReduceOrder::ORDER_INDEX_VALUE",
                "KERNEL_TASK_TYPE",
                "MulAddDst of half into float",
            ]
        ),
        boards=(
            _edge("Atlas 200I DK A2, 4 GB", None, 4, 4, (), DK_A2),
            _edge("OrangePi AIpro 8T, 8 GB", "Ascend310B4", 8, 4, (LIKE_DK,), DK_A2),
            _edge("OrangePi AIpro 8T, 16 GB", "Ascend310B4", 16, 4, (LIKE_DK,), DK_A2),
            _edge("Atlas 200I A2 20T, 12 GB", "Ascend310B1", 12, 10, (LIKE_DK,), DK_A2, NVE_LEVEL),
            _edge("OrangePi AIpro 20T, 24 GB", None, 24, 10, (LIKE_DK,), DK_A2, NVE_LEVEL),
        ),
    ),
    Chip(
        target="ascend910b",
        name="Ascend 910B",
        # "Ascend910B" without a digit is the first generation (Ascend 910), which no target is for.
        soc_versions=(
            *("Ascend910B1", "Ascend910B2", "Ascend910B2C"),
            *("Ascend910B3", "Ascend910B4", "Ascend910B4-1"),
        ),
        products=("Atlas 800I A2", "300T A2"),
        shares_memory=False,
        arch=2201,
        split_cores=True,
        cube_cores=20,
        vector_cores=40,
        buffers=Buffers(unified=192 * KIB, l1=512 * KIB, l0a=64 * KIB, l0b=64 * KIB, l0c=128 * KIB),
        reserved=256,
        skipped_workspace=16 * MIB,
        library_workspace=16 * MIB,
        matmul_needs_unified_buffer=False,
        dtypes=("float32", "float16", "bfloat16", "int8"),
        missing_operators=frozenset(),
        missing_instructions=frozenset(),
        narrowed={160: 30, 176: 28, 192: 27, 208: 26, 224: 24, 240: 23, 256: 22},
        boards=(
            _card("Atlas 800I A2 32 GB, a chip", "Ascend910B4", 32, 0.8e12, 280, (LIKE_PRO,), MSMODELING),
            _card("Atlas 800I A2 64 GB, a chip", "Ascend910B4-1", 64, 1.6e12, 280, (LIKE_PRO,), OPS_NN, MSMODELING),
        ),
    ),
)
CHIPS: dict[str, Chip] = {chip.target: chip for chip in _CHIPS}


def chip_of_soc(soc: str) -> Chip | None:
    """The chip with this SoC version, such as "Ascend310B4"; None where no target is for it."""
    return next((chip for chip in CHIPS.values() if soc in chip.soc_versions), None)


def runs_on(converted: str, device: str) -> bool:
    """Whether a graph that CANN compiled for the SoC version `converted` runs on a device of the version `device`.

    The rule: both are the same version, and the table lists it. CANN compiles for the cores, clock and memory of one
    version, and no public page states that another version of the same chip loads the result.
    """
    return converted == device and chip_of_soc(device) is not None
