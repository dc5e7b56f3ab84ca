"""The boards: memory, and the published peaks of one chip. Where no public page gives a figure, `assumed` says so.

Atlas 200I DK A2: hiascend.com, Atlas200IDKA2DeveloperKit, basic specifications: Ascend 310B, one DaVinci V300 core at
500 MHz, 4 TFLOPS FP16, 8 TOPS INT8; LPDDR4X at 3,200 Mbps, 64 bits (25.6 GB/s), 4 GB. The 20-TOPS parts: hiascend.com,
Atlas 200I A2, `npu-smi set -t nve-level` (20T and 8T of one chip); FP16 is half of INT8, as there.
Atlas 300I Pro and Duo: e.huawei.com, product pages: 24 GB LPDDR4X, 204.8 GB/s, 140 TOPS INT8, 70 TFLOPS FP16 a chip;
the Duo has two, together 408 GB/s and 280 TOPS. Of 24 GB npu-smi shows 21,534 MiB, 1,074 of them in use when idle
(gitee.com/ascend/ModelZoo-PyTorch, AASIST's conversion log).
Atlas 800I A2: gitcode.com/cann/ops-nn, docs/zh/develop/cross_platform_migration_guide.md: 64 GB, 1.6 TB/s;
gitcode.com/Ascend/msmodeling, device profiles ATLAS_800_A2_280T_64G and _32G_PCIE: 280 TFLOPS FP16, 1.6 and 0.8 TB/s.
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1_000_000_000
GIB = 1 << 30
DK_A2 = "https://www.hiascend.com/document/detail/zh/Atlas200IDKA2DeveloperKit/latest/pd/pd_0004.html"
NVE_LEVEL = "https://www.hiascend.com/document/detail/zh/Atlas%20200I%20A2/2520/re/npu/npusmi_090.html"
PRO = "https://e.huawei.com/en/products/computing/ascend/atlas-300i-pro"
DUO = "https://e.huawei.com/en/products/computing/ascend/atlas-300i-duo"
ZOO = "https://gitee.com/ascend/ModelZoo-PyTorch"
OPS_NN = "https://gitcode.com/cann/ops-nn/blob/master/docs/zh/develop/cross_platform_migration_guide.md"
MSMODELING = "https://gitcode.com/Ascend/msmodeling"

SYSTEM = 1_500_000_000  # bytes that Linux, its services and CANN's host side keep on a board with one memory
USABLE = (21_534 - 1_074) / (24 * 1024)  # of a card's memory, measured on the Atlas 300I Pro
SHARED = "memory is shared with the host's Linux, which keeps 1.5 GB"
LIKE_DK = "bandwidth as on the Atlas 200I DK A2"
LIKE_PRO = "the system keeps the share that it keeps on the Atlas 300I Pro"


@dataclass(frozen=True)
class Board:
    """memory, available: bytes of one chip's memory, and what a process may have of them; bandwidth: bytes a second;
    flops: float16 operations a second, a multiply and an add being two. None where it is not known."""

    name: str
    memory: int
    available: int
    bandwidth: float | None = None
    flops: float | None = None
    sources: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


def _edge(name: str, gib: int, tflops: float, assumed: tuple[str, ...], *sources: str) -> Board:
    return Board(name, gib * GIB, gib * GIB - SYSTEM, 25.6e9, tflops * 1e12, sources, (SHARED, *assumed))


def _card(name: str, gib: int, bandwidth: float, tflops: float, assumed: tuple[str, ...], *sources: str) -> Board:
    return Board(name, gib * GIB, int(gib * GIB * USABLE), bandwidth, tflops * 1e12, sources, assumed)


def _host(gib: int) -> Board:
    return Board(f"host with {gib} GB", gib * GIB, gib * GIB - SYSTEM, assumed=("the system keeps 1.5 GB",))


HOSTS = tuple(_host(gib) for gib in (4, 8, 16, 24, 32))
BOARDS: dict[str, tuple[Board, ...]] = {
    "cpu": HOSTS,
    "portable": HOSTS,
    "ascend310b": (
        _edge("Atlas 200I DK A2, 4 GB", 4, 4, (), DK_A2),
        _edge("OrangePi AIpro 8T, 8 GB", 8, 4, (LIKE_DK,), DK_A2),
        _edge("OrangePi AIpro 8T, 16 GB", 16, 4, (LIKE_DK,), DK_A2),
        _edge("Atlas 200I A2 20T, 12 GB", 12, 10, (LIKE_DK,), DK_A2, NVE_LEVEL),
        _edge("OrangePi AIpro 20T, 24 GB", 24, 10, (LIKE_DK,), DK_A2, NVE_LEVEL),
    ),
    "ascend310p": (
        _card("Atlas 300I Pro, 24 GB", 24, 204.8e9, 70, (), PRO, ZOO),
        _card("Atlas 300I Duo 48 GB, a chip", 24, 204e9, 70, (LIKE_PRO,), DUO),
        _card("Atlas 300I Duo 96 GB, a chip", 48, 204e9, 70, (LIKE_PRO,), DUO),
    ),
    "ascend910b": (
        _card("Atlas 800I A2 32 GB, a chip", 32, 0.8e12, 280, (LIKE_PRO,), MSMODELING),
        _card("Atlas 800I A2 64 GB, a chip", 64, 1.6e12, 280, (LIKE_PRO,), OPS_NN, MSMODELING),
    ),
}
