"""The weights file of an artifact: copied to private memory or mapped, and compared with the graphs' inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from ..artifact.files import check_hashes
from ..artifact.manifest import Artifact
from ..artifact.manifest_checks import weight_inputs
from ..artifact.private_copy import PrivateCopy, mapped
from ..artifact.safetensors import ALIGNMENT, TensorFile
from ..artifact.step_graph import STRETCH
from .weights_memory import MAP


@contextmanager
def begin_weights(artifact: Artifact, weights_memory: str) -> Iterator[Callable[[], TensorFile | None]]:
    """Copy the weights file in threads during the block, or map it.

    Args:
        artifact: the artifact. If its weights are not hashed yet (`hash_later`), the copied bytes are hashed.
        weights_memory: of weights_memory.WEIGHTS_MEMORY.

    Yields:
        A function that waits for the copy and returns the tensors, or None if the graphs hold their weights. It raises
        UserError if the file is damaged or was changed meanwhile, or if a tensor is missing, surplus, misplaced, or has
        another dtype or shape.
    """
    weights = artifact.manifest.weights
    if weights is None:
        yield lambda: None
        return
    path = artifact.file(weights.file)
    known: list[str] | None = [] if artifact.hash_later == "always" else None
    if weights_memory == MAP:
        if artifact.hash_later is not None:
            check_hashes(artifact.path, [weights], known=known)
        yield lambda: _checked(artifact, mapped(path))
        return
    sha256 = weights.sha256 if artifact.hash_later is not None else None
    with PrivateCopy(path, weights.bytes, sha256=sha256, known=known) as copy:
        yield lambda: _checked(artifact, copy.wait())


def _checked(artifact: Artifact, data: np.ndarray) -> TensorFile | None:
    """Compare the tensors in `data` with the graphs' inputs, before native code gets a pointer into it."""
    manifest = artifact.manifest
    if manifest.weights is None:
        return None
    weights = TensorFile(artifact.file(manifest.weights.file), data=data)
    wanted = {spec.name: spec for graph in manifest.graphs for spec in weight_inputs(graph)}
    layers = [name for name in wanted if name.endswith(STRETCH)]
    members = {}
    if layers:
        from ..backend.layer_tensors import layer_tensors

        names = weights.names()
        for name in layers:
            below = name.removesuffix("*")
            members[name] = layer_tensors(manifest.config, manifest.weights_format, below, names)
    # The kernels load whole cache lines; built-in operators take any place.
    weights.check(list(wanted.values()), members, ALIGNMENT if manifest.opset == "cpu" else 1)
    return weights
