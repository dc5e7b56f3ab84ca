"""Compares the memory that loading an artifact takes with the memory that this process can get.

Without it MindSpore Lite ends the process in the middle (std::bad_alloc), or the system kills it. What is counted is
the least that loading needs, so that nothing is refused that fits: pages of mapped files do not count as memory, since
the system can drop them.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..artifact.manifest import Artifact, Manifest
from ..artifact.private_copy import HUGE_PAGE, READERS
from ..artifact.sizes import cache_bytes, weights_bytes
from ..backend.resources import (
    Limit,
    address_space_kept,
    available_address_space,
    available_memory,
    share_one_heap,
)
from ..errors import UserError
from .weights_memory import COPY, MAP

T = TypeVar("T")

CACHE_MEMORY = 1_000_000_000  # bytes; the default for keys and values of texts that no row holds
CACHE_SHARE = 0.25  # and at most this part of the memory that is left

# The peak while MindSpore Lite 2.0 loads a graph with constants, divided by the bytes of the constants. Measured on
# x86-64: 5.4 for each of three Llamas with 0.23, 0.48 and 0.54 GB of float32 constants.
CONSTANT_COPIES = 5.4
PRIVATE = 50_000_000  # bytes of a process that has loaded a graph of a few kB, without the pages of libraries

# Address space, measured on x86-64 with MindSpore Lite 2.0 and one heap (share_one_heap).
LIBRARIES = 320_000_000  # what `import mindspore_lite` maps
RESERVED = 60_000_000  # of a process that has loaded a graph of a few kB: private memory, and stacks of threads
RESERVED_PER_THREAD = 45_000_000
STACK = 8_400_000  # of a thread that copies weights
# MindSpore Lite takes up to four pools of 256 MB while there is address space, and then lacks it for its own threads,
# which ends the process. With less left than one pool takes, it does without pools.
POOLS = 2_500_000_000  # with more address space than this the pools do no harm
LESS_THAN_A_POOL = 240_000_000


@contextmanager
def limited_memory(artifact: Artifact, threads: int, weights_memory: str) -> Iterator[None]:
    """Load an artifact on the host in the block.

    Args:
        artifact, threads, weights_memory: as in `check_memory`.

    Raises:
        UserError: the memory or the address space that this process can get is too small. The message has both numbers.
    """
    if available_address_space() is not None:
        share_one_heap()
    check_memory(artifact, threads, weights_memory)
    try:
        yield
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM and "failed to map segment" not in str(error):
            raise
        left = min(filter(None, (available_memory(), available_address_space())), key=lambda limit: limit.available)
        raise UserError(
            f"{artifact.path}: no more memory while it was loaded ({error}); {left.available / 1e6:,.0f} MB are left "
            f"({left.source}). Raise the limit, or export with a smaller CONTEXT (now {artifact.manifest.context:,}), "
            f"BATCH ({artifact.manifest.batch}) or model"
        ) from error


def build_with_reserve(build: Callable[[], T], manifest: Manifest) -> T:
    """Return build(). If address space is limited, hide most of it meanwhile (POOLS)."""
    limit = available_address_space()
    if limit is None or limit.available > POOLS or manifest.weights is None:  # constants of a graph need the space
        return build()
    with address_space_kept(limit.available - LESS_THAN_A_POOL):
        return build()


def check_memory(artifact: Artifact, threads: int, weights_memory: str) -> None:
    """Raise UserError if the artifact cannot be loaded on the host within the memory that this process can get.

    Args:
        artifact: of a target that runs on the host's processors.
        threads: CPU threads.
        weights_memory: of weights_memory.WEIGHTS_MEMORY.
    """
    manifest = artifact.manifest
    needed, limit = memory_needed(manifest, weights_memory), available_memory()
    mapped = memory_needed(manifest, MAP)
    _compare(
        artifact, needed, limit, "memory", map_fits=limit is not None and mapped <= limit.available and mapped < needed
    )
    _compare(artifact, address_space_needed(manifest, threads), available_address_space(), "address space")


def check_cache_memory(artifact: Artifact, weights_memory: str, cache_memory: int) -> None:
    """Raise UserError if `cache_memory` bytes do not fit beside what loading the artifact takes.

    Args:
        artifact: of any target; one that runs on an NPU keeps its weights and cache there.
        weights_memory: of weights_memory.WEIGHTS_MEMORY.
        cache_memory: bytes for the keys and values of texts that no cache row holds (KVStore).
    """
    manifest, limit = artifact.manifest, available_memory()
    model = PRIVATE if manifest.opset == "ascend" else memory_needed(manifest, weights_memory)
    if limit is not None and model + cache_memory > limit.available:
        raise UserError(
            f"--cache-memory is {cache_memory / 1e6:,.0f} MB, and the model takes {model / 1e6:,.0f} MB; "
            f"{limit.available / 1e6:,.0f} MB are available ({limit.source}). Give a smaller --cache-memory; 0 keeps "
            "nothing"
        )


def default_cache_memory(manifest: Manifest) -> int:
    """Return the bytes that a KVStore may take if the user does not say, once the artifact is loaded.

    It is 0 on an NPU, where each copy moves the whole cache to the host.
    """
    if manifest.opset == "ascend":
        return 0
    limits = filter(None, (available_memory(), available_address_space()))
    return min([CACHE_MEMORY, *(int(CACHE_SHARE * limit.available) for limit in limits)])


def memory_needed(manifest: Manifest, weights_memory: str) -> int:
    """Return the bytes that loading takes at least, without the pages of mapped files."""
    constants = 0 if manifest.weights is not None else weights_bytes(manifest)
    copied = manifest.weights.bytes if manifest.weights is not None and weights_memory == COPY else 0
    return int((CONSTANT_COPIES - 1) * constants) + copied + cache_bytes(manifest) + PRIVATE


def address_space_needed(manifest: Manifest, threads: int) -> int:
    """Return the bytes of address space that loading takes."""
    constants = 0 if manifest.weights is not None else weights_bytes(manifest)
    mapped = weights_bytes(manifest) + int((CONSTANT_COPIES - 1) * constants) + cache_bytes(manifest)
    libraries = 0 if "mindspore_lite" in sys.modules else LIBRARIES
    workers = min(threads, os.cpu_count() or 1)  # MindSpore Lite starts no more
    copying = 2 * HUGE_PAGE + READERS * STACK
    return mapped + libraries + copying + RESERVED + RESERVED_PER_THREAD * workers


def _compare(artifact: Artifact, needed: int, limit: Limit | None, what: str, map_fits: bool = False) -> None:
    if limit is None or needed <= limit.available:
        return
    manifest = artifact.manifest
    remedy = 'Load it with weights_memory="map" (--weights-memory map), raise' if map_fits else "Raise"
    raise UserError(
        f"{artifact.path}: loading it takes at least {needed / 1e6:,.0f} MB of {what}, weights "
        f"{weights_bytes(manifest) / 1e6:,.0f} MB and KV cache {cache_bytes(manifest) / 1e6:,.0f} MB among them; "
        f"{limit.available / 1e6:,.0f} MB are available ({limit.source}). {remedy} the limit or end other processes, "
        f"or export with a smaller CONTEXT (now {manifest.context:,}), BATCH ({manifest.batch}) or model"
    )
