"""Hugging Face's keywords for where a model goes and in which type: what an artifact has settled at export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .artifact.manifest import Manifest
from .errors import UserError

TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # Hugging Face's names -> of weights


def check_placement(caller: str, given: Mapping[str, Any], manifest: Manifest) -> None:
    """device, device_map, dtype, torch_dtype: None and "auto" pass, and what the artifact was exported for.

    Raises UserError for another device or type, TypeError for a name that is none of these.
    """
    for name, value in given.items():
        if name not in ("device", "device_map", "dtype", "torch_dtype"):
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}")
        if value is None or value == "auto":
            continue
        asked = str(value).removeprefix("torch.")
        if name.startswith("device"):
            fits = asked in ("cpu", "-1") and not manifest.target.startswith("ascend")
            remedy = "Leave it out (device_id says which NPU, of several)"
        else:
            fits = TYPES.get(asked, asked) == manifest.weights_format
            remedy = f"Leave it out, or export with WEIGHTS={TYPES.get(asked, '...')}"
        if not fits:
            exported = f"target {manifest.target}, weights {manifest.weights_format}"
            raise UserError(f"{name} is {value!r}; the artifact was exported for {exported}. {remedy}")


def listed(name: str, given: Any) -> list[Any]:
    """A callable, or several in a list. Raises UserError for anything else."""
    several = isinstance(given, (list, tuple))
    made = list(given) if several else [] if given is None else [given]
    for one in made:
        if not callable(one):
            raise UserError(f"{name} holds {one!r}; needed: a callable or a list of them")
    return made
