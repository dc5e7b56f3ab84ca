"""Arguments that Hugging Face users pass: where a model goes, in which type, and callables or lists of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .artifact.manifest import Manifest
from .errors import UserError

PLACEMENT = ("device", "device_map", "dtype", "torch_dtype")
WEIGHTS_OF_DTYPE = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # Hugging Face's name -> weights format


def check_placement(caller: str, given: Mapping[str, Any], manifest: Manifest) -> None:
    """Check device, device_map, dtype and torch_dtype, all of which the export has fixed.

    None, "auto", and what the artifact was exported for are accepted.

    Args:
        caller: name of the function, for messages.
        given: the keywords.
        manifest: gives the target and the weights format.

    Raises:
        UserError: another device or type.
        TypeError: another keyword.
    """
    for name, value in given.items():
        if name not in PLACEMENT:
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}")
        if value is None or value == "auto":
            continue
        wanted = str(value).removeprefix("torch.")
        if name.startswith("device"):
            fits = wanted in ("cpu", "-1") and not manifest.target.startswith("ascend")
            remedy = "Leave it out (device_id says which NPU, of several)"
        else:
            fits = WEIGHTS_OF_DTYPE.get(wanted, wanted) == manifest.weights_format
            remedy = f"Leave it out, or export with WEIGHTS={WEIGHTS_OF_DTYPE.get(wanted, '...')}"
        if not fits:
            exported = f"target {manifest.target}, weights {manifest.weights_format}"
            raise UserError(f"{name} is {value!r}; the artifact was exported for {exported}. {remedy}")


def as_callables(name: str, given: Any) -> list[Any]:
    """Return logits_processor or stopping_criteria as a list.

    Args:
        name: of the argument, for messages.
        given: a callable, a list of them, or None.

    Raises:
        UserError: anything else.
    """
    several = isinstance(given, (list, tuple))
    callables = list(given) if several else [] if given is None else [given]
    for one in callables:
        if not callable(one):
            raise UserError(f"{name} holds {one!r}; needed: a callable or a list of them")
    return callables
