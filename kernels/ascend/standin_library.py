"""Compiles Ascend C kernels for the stand-in for a chip, and runs them there (standin/)."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..reference import Array
from .chips import CHIPS, INSTRUCTIONS

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "ascend-standin"
OPERATORS = ("fused_attention", "split_attention", "join_attention", "lm_head", "quant_linear")
KERNELS = tuple(f"op_kernel/{name}.cpp" for name in OPERATORS)
# What the stand-in counts on each core, in the order of standin/standin/counts.h.
COUNTS = (
    *("vector_instructions", "vector_repeats", "scalar_accesses", "vector_barriers", "full_barriers"),
    *("load_bytes", "load_bursts", "store_bytes", "store_bursts", "products", "cube_fractals", "cube_bytes"),
    "cube_bursts",
)
PIPES = ("scalar", "vector", "cube", "mte1", "mte2", "mte3", "fixpipe")  # of a core, in the order of types.h
OWN = ("standin/launch.cpp", "standin/tiling.cpp")


class StandInError(RuntimeError):
    """A kernel did what would go wrong on the chip."""

    @property
    def kind(self) -> str:
        """The kind of error: the word in brackets at the start of the message."""
        return str(self).partition("]")[0].lstrip("[")

    @property
    def check(self) -> str:
        """File and line of the check that found the error: the words in brackets at the end of the message."""
        return str(self).rpartition("(")[2].rstrip(")")


def compile_library(
    chip: str, sources: tuple[Path, ...], optimise: str = "-O2", constant: tuple[int, bytes] | None = None
) -> Path:
    """Compile `sources` against the stand-in of a target's chip. Return the shared library under build/.

    constant: a tiling key and tiling data that become constants of the source, as CANN compiles the gears of a
    converted graph. None: both come with the launch. It compiles only what changed. Raises RuntimeError without a
    compiler, or if compiling fails.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise RuntimeError(
            "the Ascend stand-in needs a C++ compiler, and g++ was not found. Install it or set CXX to another"
        )
    flags = ["-std=c++17", optimise, "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror"]
    flags += [f"-D__NPU_ARCH__={CHIPS[chip].arch}", f"-I{HERE / 'standin'}"]
    headers = {"chip_table.h": chip_table(chip)}
    if constant is not None:
        flags.append("-DEDGELLAMA_STANDIN_CONSTANT_TILING")
        headers["constant_tiling.h"] = constant_tiling(*constant)
    digest = hashlib.sha256("\0".join([compiler, *flags, *headers.values()]).encode())
    for file in sorted({*HERE.rglob("*.h"), *sources}):
        digest.update(file.name.encode() + file.read_bytes())
    target = BUILD / f"{chip}-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        scratch = target.with_suffix(f".{os.getpid()}.tmp")
        with tempfile.TemporaryDirectory() as generated:
            for name, text in headers.items():
                (Path(generated) / name).write_text(text)
            command = [compiler, *flags, f"-I{generated}", *map(str, sources), "-o", str(scratch)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"compiling {', '.join(s.name for s in sources)} for {chip} failed:\n{done.stderr}")
        scratch.replace(target)
    return target


def chip_table(name: str) -> str:
    """Return the header chip_table.h, which defines standin::kChip (standin/standin/chip.h) from the table of chips.

    Args:
        name: the target.
    """
    chip = CHIPS[name]
    buffers = chip.buffers
    values: dict[str, int | str] = {
        "name": f'"{chip.name.removeprefix("Ascend ")}"',
        "arch": chip.arch,
        "splitCores": chip.split_cores,
        "cubeCores": chip.cube_cores,
        "vectorCores": chip.vector_cores,
        "ub": buffers.unified - chip.reserved,
        "l1": buffers.l1 - chip.reserved,
        "l0a": buffers.l0a,
        "l0b": buffers.l0b,
        "l0c": buffers.l0c,
        "bfloat16": "bfloat16" in chip.dtypes,
        "matmulNeedsUb": chip.matmul_needs_unified_buffer,
        "skippedWorkspace": chip.skipped_workspace,
        "libraryWorkspace": chip.library_workspace,
        **{field: name not in chip.missing_instructions for name, field in INSTRUCTIONS.items()},
    }
    assigned = "".join(f"    chip.{field} = {int(v) if isinstance(v, int) else v};\n" for field, v in values.items())
    return (
        "namespace standin {\n"
        "constexpr ChipSpec kChip = [] {\n"
        f"    ChipSpec chip{{}};\n{assigned}    return chip;\n"
        "}();\n"
        "}  // namespace standin\n"
    )


def constant_tiling(key: int, tiling: bytes) -> str:
    """Return the header constant_tiling.h (standin/kernel_operator.h)."""
    values = ", ".join(map(str, tiling))
    return (
        "namespace standin {\n"
        f"constexpr std::uint64_t kTilingKey = {key};\n"
        f"struct TilingBytes {{ std::uint8_t data[{len(tiling)}]; }};\n"
        f"constexpr TilingBytes kTilingBytes{{{{{values}}}}};\n"
        "}  // namespace standin\n"
    )


@functools.cache
def load(
    chip: str,
    sources: tuple[Path, ...] = tuple(HERE / name for name in KERNELS),
    optimise: str = "-O2",
    constant: tuple[int, bytes] | None = None,
) -> ctypes.CDLL:
    """Return the library of a target's chip with the given kernels and the launcher of the stand-in."""
    return ctypes.CDLL(str(compile_library(chip, (*sources, *(HERE / name for name in OWN)), optimise, constant)))


@dataclass(frozen=True)
class Argument:
    """One pointer argument of a kernel.

    Attributes:
        name: for messages
        array: its memory; None is a null pointer
        writable: whether the kernel may write it
        fresh: whether it is uninitialised memory, which the kernel must write before it reads it
    """

    name: str
    array: Array | None
    writable: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class Launched:
    """What a kernel took.

    Attributes:
        peak: the most bytes of unified buffer that one core used
        counts: the counts of each core, by the names in COUNTS
        cycles: with costs, of each core the work of each pipe and the end of the kernel: [cores, PIPES + 1, 2], the
            optimistic and the pessimistic end of the costs
    """

    peak: int
    counts: list[dict[str, int]]
    cycles: Array


def launch(
    library: ctypes.CDLL,
    kernel: str,
    arguments: list[Argument],
    *,
    blocks: int = 1,
    workers: int | None = None,
    key: int = 0,
    costs: Array | None = None,
) -> Launched:
    """Run a kernel.

    Args:
        library: what `load` returned
        kernel: name of the entry point
        arguments: in the kernel's order
        blocks: what the kernel sees as the number of blocks
        workers: number of cores to run it on; None is `blocks`
        key: the tiling key
        costs: cycles of each of costs.COSTS, [COSTS, 2] float64; None: everything takes no time

    Raises StandInError.
    """
    count = len(arguments)
    pointers = (ctypes.c_void_p * count)(*(a.array.ctypes.data if a.array is not None else None for a in arguments))
    names = (ctypes.c_char_p * count)(*(a.name.encode() for a in arguments))
    sizes = (ctypes.c_size_t * count)(*(a.array.nbytes if a.array is not None else 0 for a in arguments))
    writable = (ctypes.c_int * count)(*(a.writable for a in arguments))
    fresh = (ctypes.c_int * count)(*(a.fresh for a in arguments))
    peak, message = ctypes.c_size_t(), ctypes.create_string_buffer(1024)
    cores = workers or blocks
    counts = np.zeros((cores, len(COUNTS)), np.int64)
    cycles = np.zeros((cores, len(PIPES) + 1, 2), np.float64)
    entry = ctypes.cast(getattr(library, kernel), ctypes.c_void_p)
    failed = library.standin_run(
        entry,
        count,
        pointers,
        names,
        sizes,
        writable,
        fresh,
        blocks,
        cores,
        ctypes.c_uint64(key),
        ctypes.byref(peak),
        counts.ctypes.data_as(ctypes.c_void_p),
        None if costs is None else costs.ctypes.data_as(ctypes.c_void_p),
        cycles.ctypes.data_as(ctypes.c_void_p),
        message,
        ctypes.c_size_t(len(message)),
    )
    if failed:
        raise StandInError(message.value.decode())
    return Launched(peak.value, [dict(zip(COUNTS, map(int, core), strict=True)) for core in counts], cycles)
