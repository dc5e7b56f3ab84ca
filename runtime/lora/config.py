"""adapter_config.json: what PEFT writes beside the tensors of an adapter.

Keys that change the mathematics and are not supported are refused by name. The names and their meaning are those of
PEFT's LoraConfig (https://huggingface.co/docs/peft/package_reference/lora).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifact.json_reader import read_object
from ..errors import UserError, shown

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
RETRAIN = "Train a LoRA adapter (peft_type LORA), or export a full checkpoint of the tuned model"
MERGE = "Merge it with PEFT's merge_and_unload(), save that with save_pretrained(), and export the result"
# Types of adapters that add tokens or layers, so that no weight holds their effect.
UNMERGEABLE = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")
ALL_LINEAR = "all-linear"
EMBEDDING, HEAD = "embed_tokens", "lm_head"
BIASES = ("none", "all", "lora_only")
# Keys that have no effect on a trained adapter: where it comes from, and how it was begun and trained.
NEUTRAL = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "velora_config", "runtime_config", "qalora_group_size"),
}
READ = {
    *("r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "use_rslora", "bias"),
    *("use_dora", "lora_bias", "modules_to_save", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *("trainable_token_indices", "ensure_weight_tying"),
}
# Where an expression of a pattern stands: rank_pattern and alpha_pattern, and layers_pattern.
ENDING, LAYERS = r"(.*\.)?({})$", r"(?:^|.*?\.){}\.(\d+)\."
# Values of init_lora_weights that leave the base weights as they are. The others change them before the training.
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class AdapterConfig:
    """A checked adapter_config.json.

    Attributes:
        rank, alpha: of every module that rank_pattern and alpha_pattern do not name.
        rank_pattern, alpha_pattern: regular expression for the end of a module's name -> rank, alpha.
        target_modules: ends of the names of adapted modules, or a regular expression for whole names, or ALL_LINEAR.
        exclude_modules: likewise; these are not adapted.
        layers, layers_pattern: the numbers of adapted layers, and the names of their lists; empty: all.
        modules_to_save: ends of the names of modules that the adapter replaces.
        rslora: alpha is divided by the square root of the rank, and not by the rank.
        dora: the adapter has magnitudes (arXiv:2402.09353).
        bias: which biases the adapter replaces: none, all, lora_only (those of adapted modules).
        tied: an adapted embedding also is the output matrix, if the base model has one matrix for both.
        tokens: end of a module's name -> the rows of its matrix that the adapter replaces.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_modules: str | tuple[str, ...] = ()
    exclude_modules: str | tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    rslora: bool = False
    dora: bool = False
    bias: str = "none"
    tied: bool = False
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def expressions(self) -> list[str]:
        """Return every regular expression that `adapts`, `rank_of` and `scaling` match."""
        names = (self.target_modules, self.exclude_modules)
        whole = [text for text in names if isinstance(text, str) and text != ALL_LINEAR]
        ends = [ENDING.format(text) for text in (*self.rank_pattern, *self.alpha_pattern)]
        return [*whole, *ends, *(LAYERS.format(text) for text in self.layers_pattern)]

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's matrices."""
        return self.rank_pattern.get(_pattern(self.rank_pattern, module), self.rank)

    def scaling(self, module: str) -> float:
        """Return what the product of a module's matrices is multiplied by."""
        alpha = self.alpha_pattern.get(_pattern(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def adapts(self, module: str) -> bool:
        """Whether the adapter has matrices for a linear layer or an embedding of this name."""
        if _matches(self.exclude_modules, module) or self.saves(module):
            return False
        if self.target_modules == ALL_LINEAR:
            return not module.endswith((EMBEDDING, HEAD))
        if not _matches(self.target_modules, module):
            return False
        if isinstance(self.target_modules, str) or not self.layers:
            return True
        patterns = self.layers_pattern or (r"[^.]*",)
        found = (re.match(LAYERS.format(pattern), module) for pattern in patterns)
        # The pattern may have groups of its own, before the one of the number.
        return any(match is not None and int(match[match.re.groups]) in self.layers for match in found)

    def saves(self, module: str) -> bool:
        """Whether the adapter replaces the module of this name."""
        return any(re.fullmatch(rf"(.*\.)?{re.escape(name)}(\..*)?", module) for name in self.modules_to_save)


def folder_and_scale(text: str) -> tuple[str, float]:
    """Parse "style" or "style:0.5". Raises UserError for an empty name or a scale that is 0, NaN or infinite."""
    folder, _, last = text.rpartition(":")
    try:
        scale = float(last) if folder else 1.0
    except ValueError:
        scale, folder = 1.0, text
    folder = folder or text
    if not folder.strip() or not math.isfinite(scale) or scale == 0:
        raise UserError(
            f"{text!r} is no adapter; needed: FOLDER or FOLDER:SCALE with a scale other than 0, such as style:0.5"
        )
    return folder, scale


def read_config(folder: Path) -> AdapterConfig:
    """Read the adapter_config.json of a folder.

    Raises UserError if the folder is no LoRA adapter with safetensors, or if its config is not valid or supported.
    """
    if not folder.is_dir():
        maybe_hub = not folder.exists() and len(folder.parts) == 2 and not folder.is_absolute()
        raise UserError(
            f"{folder} is no folder; an adapter is the folder that PEFT's save_pretrained() wrote (with {CONFIG})"
            + (f". Download one from the hub first: `hf download {folder} --local-dir FOLDER`" if maybe_hub else "")
        )
    path = folder / CONFIG
    if not path.exists():
        what = "a model, not an adapter: give it as MODEL" if (folder / "config.json").exists() else "no adapter"
        raise UserError(
            f"{folder} has no {CONFIG}: it is {what}. LORA is the folder that PEFT's save_pretrained() wrote"
        )
    values = read_object(path, "Download the adapter again")
    try:
        config = _config(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not (folder / TENSORS).exists():
        if (folder / PICKLE).exists():
            raise UserError(
                f"{folder} has its tensors in {PICKLE} only, a pickle, which can run any code. Load it with PEFT where "
                "you trust it, and save it with save_pretrained(..., safe_serialization=True)"
            )
        raise UserError(f"{folder} has no {TENSORS}. Download the adapter again, with this file")
    return config


def _config(values: Mapping[str, Any]) -> AdapterConfig:
    kind = values.get("peft_type")
    if kind != "LORA":
        if kind in UNMERGEABLE:
            raise UserError(f"the adapter has type {kind}, which is not in the weights of a model. {RETRAIN}")
        raise UserError(f"the adapter has type {shown(kind)}; supported: LORA. {MERGE}")
    for key, value in values.items():
        if key not in NEUTRAL and key not in READ and value not in (None, False, {}, [], ""):
            raise UserError(f"{key[:80]} is {shown(value)}, which this release does not know. {MERGE}")
    start = values.get("init_lora_weights", True)
    if not (start is None or isinstance(start, bool) or start in PLAIN_STARTS):
        raise UserError(
            f"init_lora_weights is {shown(start)}: the adapter was trained on changed base weights. Convert it with "
            "PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    layers = values.get("layers_to_transform")
    tokens = values.get("trainable_token_indices") or {}
    return AdapterConfig(
        rank=_whole("r", values.get("r", 8)),
        alpha=_number("lora_alpha", values.get("lora_alpha", 8)),
        rank_pattern=_pattern_table("rank_pattern", values, _whole),
        alpha_pattern=_pattern_table("alpha_pattern", values, _number),
        target_modules=_names("target_modules", values.get("target_modules")),
        exclude_modules=_names("exclude_modules", values.get("exclude_modules")),
        layers=_indices("layers_to_transform", [layers] if isinstance(layers, int) else layers or []),
        layers_pattern=_layer_lists(values.get("layers_pattern")),
        modules_to_save=_list("modules_to_save", values.get("modules_to_save")),
        rslora=_flag("use_rslora", values),
        dora=_flag("use_dora", values),
        bias=_choice("bias", values.get("bias", "none"), BIASES),
        tied=_flag("ensure_weight_tying", values),
        tokens={
            name: _indices(f"trainable_token_indices.{name}", listed)
            for name, listed in (tokens if isinstance(tokens, dict) else {EMBEDDING: tokens}).items()
        },
    )


def _pattern(patterns: Mapping[str, Any], module: str) -> str:
    """Return the first pattern that matches the end of the module's name, or the name itself."""
    return next((key for key in patterns if re.match(ENDING.format(key), module)), module)


def _matches(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _wrong(key: str, value: object, needed: str) -> UserError:
    return UserError(f"{key[:80]} is {shown(value)}; needed: {needed}. Download the adapter again")


def _whole(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 20:
        raise _wrong(key, value, "a whole number above 0")
    return value


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e30:
        raise _wrong(key, value, "a number")
    return float(value)


def _flag(key: str, values: Mapping[str, Any]) -> bool:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return bool(value)


def _choice(key: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise _wrong(key, value, f"one of {', '.join(choices)}")
    return str(value)


def _layer_lists(value: Any) -> tuple[str, ...]:
    names = _list("layers_pattern", value)
    for name in names:
        _check_expression("layers_pattern", name, LAYERS)
    return names


def _list(key: str, value: Any) -> tuple[str, ...]:
    found = _names(key, value)
    return (found,) if isinstance(found, str) else found


def _names(key: str, value: Any) -> str | tuple[str, ...]:
    """Return a list of names, or a regular expression."""
    if value is None:
        return ()
    if isinstance(value, str):
        if value != ALL_LINEAR:
            _check_expression(key, value)
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _wrong(key, value, "a list of names or a regular expression")
    return tuple(value)


def _indices(key: str, value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(index) is int and 0 <= index < 1 << 31 for index in value)
    if not whole or len(set(value)) != len(value):
        raise _wrong(key, value, "a list of different whole numbers")
    return tuple(value)


def _pattern_table(key: str, values: Mapping[str, Any], read: Any) -> dict[str, Any]:
    table = values.get(key) or {}
    if not isinstance(table, dict):
        raise _wrong(key, table, "an object")
    for pattern in table:
        _check_expression(key, pattern, ENDING)
    return {pattern: read(f"{key}.{pattern}", value) for pattern, value in table.items()}


def _check_expression(key: str, text: str, place: str = "{}") -> None:
    try:
        re.compile(text)
        re.compile(place.format(text))  # flags such as (?i) are valid at the beginning only
    except (re.error, OverflowError, RecursionError) as error:
        raise _wrong(key, text, f"a regular expression ({error})") from error
