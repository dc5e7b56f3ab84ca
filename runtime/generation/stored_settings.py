"""Reads generation_config.json as it is published: replaces what cannot be used, and tells the user.

transformers loads almost every value and refuses some at a call. So published files have values such as temperature 0
with do_sample, or top_k -1. They must not keep a model from loading.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ..artifact.json_reader import read_object
from ..artifact.manifest import Artifact
from ..errors import UserError
from .config import CHECKS, DEFAULTS, FIELDS, UNUSED_TEMPERATURE, GenerationConfig

# Keys of generation_config.json that are no settings here, or that the manifest gives.
NOT_SETTINGS = {
    *("_from_model_config", "transformers_version", "bos_token_id", "use_cache"),
    *("cache_implementation", "return_dict_in_generate", "output_scores", "output_logits"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size"),  # the caller decides: they change the speed only
}
LIMITS = {**CHECKS, "temperature": UNUSED_TEMPERATURE}
DRAWN = ("temperature", "top_p")  # at 0 only the likeliest token can be drawn
LONGEST_NUMBER = 40  # characters of a whole number that is written as text
NEUTRAL: tuple[Any, ...] = (None, False, 0, 1, "", [], {})


def artifact_settings(artifact: Artifact) -> GenerationConfig:
    """Return the artifact's settings: its generation_config.json, with the manifest's special ids as defaults.

    Warns of keys that are not known, and of values that are replaced.

    Raises:
        UserError: the file cannot be read, or is no JSON object.
    """
    path = artifact.file("generation_config.json")
    stored = read_object(path, "Restore it or export again") if path.exists() else {}
    settings, notes = usable(stored)
    for note in notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    ids = {name: getattr(artifact.manifest, name) for name in ("eos_token_id", "pad_token_id")}
    return GenerationConfig(**{**ids, **settings})


def usable(stored: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that can be used, and what the user is told of the others.

    Args:
        stored: the content of a generation_config.json.
    """
    settings, notes = {}, []
    for name, given in stored.items():
        if name in NOT_SETTINGS or name not in FIELDS or given is None:
            continue
        value = _plain(name, given)
        if value is None:
            continue
        try:
            settings[name] = value if name in DRAWN and value == 0 else LIMITS[name](name, value)
        except UserError as error:
            notes.append(f"{error}. The default ({DEFAULTS[name]!r}) is used")
    if others := [x for x in stored if x not in FIELDS | NOT_SETTINGS and stored[x] not in NEUTRAL]:
        notes.append(f"{', '.join(others)}: not known to this runtime, so without effect")
    for name in DRAWN:
        if settings.get(name) == 0:
            del settings[name]
            if settings.pop("do_sample", False):
                notes.append(f"{name} is 0 with do_sample. The likeliest token is taken (do_sample=False)")
    try:
        GenerationConfig(**settings).check_returned_sequences()
    except UserError as error:
        notes.append(f"{error}. One answer is returned")
        del settings["num_return_sequences"]
    return settings, notes


def _plain(name: str, given: Any) -> Any:
    """Return a value in the type that the setting has; None if it says "none" in another way."""
    value = given
    if isinstance(given, str) and name not in ("stop_strings", "early_stopping"):
        truth = {"true": True, "false": False}.get(given.strip().lower())
        try:
            value = float(given) if truth is None else truth
        except ValueError:
            return given
    if isinstance(DEFAULTS[name], bool) and value in (0, 1):
        return bool(value)
    if name == "eos_token_id":
        several = value if isinstance(value, list) else [value]
        ids = [_whole(x) for x in several]
        if any(isinstance(x, (list, dict)) for x in ids):
            return ids
        return list(dict.fromkeys(x for x in ids if x is not None and not (isinstance(x, int) and x < 0))) or None
    if name == "pad_token_id":
        value = _whole(value)
        return None if isinstance(value, int) and value < 0 else value
    if name == "top_k":
        value = _whole(value)
        return 0 if isinstance(value, int) and value < 0 else value  # -1 turns it off in vLLM
    return _whole(value)


def _whole(value: Any) -> Any:
    """Return a whole number as int: 50.0 becomes 50. Other values stay."""
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER and value.strip().removeprefix("-").isdecimal():
        return int(value.strip())  # int() keeps some characters that strip() removes, such as \x1d
    return int(value) if isinstance(value, float) and value.is_integer() else value
