"""The toy of tiny.py as a converted artifact for Ascend."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgellama.artifact.manifest import Conversion, Manifest, TensorSpec, write_manifest
from support.tiny import manifest

BATCH, CONTEXT, GEARS = 2, 64, (1, 4, 16)


def ascend_manifest(folder: Path, **changes: Any) -> Manifest:
    """Writes the toy as an artifact of the ascend op set that was converted for an Ascend310B4."""
    made = manifest(folder, BATCH, CONTEXT, GEARS)
    inputs = (
        TensorSpec("tokens_by_step", "int32", (GEARS[-1], BATCH)),
        TensorSpec("start", "int32", (BATCH,)),
        TensorSpec("length", "int32", (BATCH,)),
        *(spec for spec in made.graphs[0].inputs if "_cache." in spec.name),
    )
    graph = dataclasses.replace(made.graphs[0], inputs=inputs, outputs=made.graphs[0].outputs[:1])
    fields: dict[str, Any] = {
        "target": "ascend310b",
        "opset": "ascend",
        "graphs": (graph,),
        "cache": dataclasses.replace(made.cache, policy="in_place"),
        "converted": Conversion("Ascend310B4", GEARS, "8.2", "2.7.0"),
    }
    made = dataclasses.replace(made, **{**fields, **changes})
    write_manifest(folder, made)
    return made
