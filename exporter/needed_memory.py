"""Compares the memory that an export takes with the memory that this process can get, before the work begins.

Weights are written as a stream, so an export takes nearly the same for every model. Measured (x86-64, Python 3.11,
MindSpore 2): 393 MB of private memory and 1,617 MB of address space for SmolLM2; with the pages of libraries, which the
system can drop, 725 MB, and 750 MB for llama3-8b.
"""

from __future__ import annotations

from edgellama.artifact.manifest import Manifest
from edgellama.backend.resources import Limit, available_address_space, available_memory
from edgellama.engine.memory import memory_needed
from edgellama.engine.weights_memory import MAP
from edgellama.errors import UserError

PRIVATE = 400_000_000  # bytes
ADDRESS_SPACE = 1_650_000_000  # bytes


def check_export(model: str) -> None:
    """Raise UserError if this process cannot get the memory or the address space to export `model`."""
    remedy = "End other processes or raise the limit, or export on another host and copy the artifact"
    _compare(f"exporting {model}", PRIVATE, available_memory(), "memory", remedy)
    _compare(f"exporting {model}", ADDRESS_SPACE, available_address_space(), "address space", remedy)


def check_proof(manifest: Manifest) -> None:
    """Raise UserError if there is too little memory to run a finished artifact for its comparison with the reference.

    The ONNX twin of an Ascend artifact reads one tensor after the other, so it is not checked.
    """
    if manifest.opset == "ascend":
        return
    needed = memory_needed(manifest, MAP)
    remedy = "End other processes or raise the limit, choose a smaller CONTEXT or BATCH, or export with VERIFY=0"
    _compare(f"comparing {manifest.name} with its reference", needed, available_memory(), "memory", remedy)


def _compare(work: str, needed: int, limit: Limit | None, what: str, remedy: str) -> None:
    if limit is not None and needed > limit.available:
        raise UserError(
            f"{work} takes at least {needed / 1e6:,.0f} MB of {what}; {limit.available / 1e6:,.0f} MB are available "
            f"({limit.source}). {remedy}"
        )
