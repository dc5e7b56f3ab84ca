"""How the weights of a checkpoint are quantized, as the key quantization_config of its config.json says.

Every scheme that matrices.py cannot read is refused here by name, before any work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellama.errors import UserError, shown

KEYS = ("quantization_config", "compression_config")  # the second: in early files of compressed-tensors
READABLE = (
    "AWQ (version gemm), GPTQ (4 or 8 bits), compressed-tensors (pack-quantized, int-quantized and float-quantized) "
    "and FP8 (by blocks, channels or tensors)"
)
REMEDY = "Export the checkpoint that it was made of, or a GGUF file of it"
# What a quant_method is called, if the method's own name does not say it.
NAMES = {
    "bitsandbytes": "bitsandbytes (NF4, FP4 or LLM.int8)",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "auto-round": "AutoRound's own packing",
    "bitnet": "BitNet (1.58 bits)",
    "eetq": "EETQ",
    "exl2": "ExLlama 2",
    "exl3": "ExLlama 3",
    "fp_quant": "FP-Quant (NVFP4 or MXFP4)",
    "higgs": "HIGGS",
    "marlin": "Marlin",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
    "modelopt_fp4": "ModelOpt (NVFP4)",
    "quanto": "Quanto",
    "quark": "Quark",
    "quip": "QuIP#",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}


@dataclass(frozen=True)
class WeightGroup:
    """The weights that one config group of compressed-tensors describes.

    Attributes:
        targets: modules, by name, by regular expression ("re:...") or by class ("Linear").
        bits: of a weight.
        is_float: the weights are 8-bit floats; if not, integers.
        symmetric: there are no zero points.
        strategy: what shares a scale: "tensor", "channel", "group" or "block".
        group_size: inputs of a group, with strategy "group".
        block: outputs and inputs of a block, with strategy "block".
        ordered: inputs belong to groups by weight_g_idx.
    """

    targets: tuple[str, ...]
    bits: int
    is_float: bool
    symmetric: bool
    strategy: str
    group_size: int | None
    block: tuple[int, int] | None
    ordered: bool

    def matches(self, module: str) -> int:
        """Return how closely a target names a module: 3 by name, 2 by expression, 1 by class, 0 not at all."""
        kind = "Embedding" if module.endswith("embed_tokens") else "Linear"
        found = [0]
        for target in self.targets:
            if target == module:
                found.append(3)
            elif target.startswith("re:") and re.match(target[3:], module):
                found.append(2)
            elif target == kind:
                found.append(1)
        return max(found)


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint is quantized.

    Attributes:
        method: "awq", "gptq", "compressed-tensors" or "fp8".
        name: for messages.
        group_size: inputs of a group with AWQ and GPTQ; -1: all of them; None: it differs between modules.
        zero_offset: what GPTQ's stored zero points lack.
        ordered: inputs belong to groups by g_idx (GPTQ's act-order).
        block: outputs and inputs of a block of FP8; None: a scale belongs to a channel or a tensor.
        groups: the config groups of compressed-tensors.
    """

    method: str
    name: str
    group_size: int | None = None
    zero_offset: int = 0
    ordered: bool = False
    block: tuple[int, int] | None = None
    groups: tuple[WeightGroup, ...] = ()

    def expressions(self) -> list[str]:
        """Return every regular expression among the targets of the groups."""
        return [text[3:] for group in self.groups for text in group.targets if text.startswith("re:")]

    def group_of(self, module: str) -> WeightGroup | None:
        """Return the config group of compressed-tensors that describes a module; None if none does."""
        best = max(self.groups, key=lambda group: group.matches(module))
        return best if best.matches(module) or len(self.groups) == 1 else None


def read_scheme(config: Mapping[str, Any]) -> Scheme | None:
    """Return how the weights of a config.json's checkpoint are quantized; None if they are not.

    Raises UserError, with the remedy, if it is a scheme that cannot be read.
    """
    key = next((key for key in KEYS if config.get(key) is not None), None)
    if key is None:
        return None
    given = config[key]
    if not isinstance(given, dict):
        raise UserError(f"{key} = {shown(given)} in the config is no object. Use the config.json of the publisher")
    found = _Keys(key, given)
    method = given.get("quant_method")
    if method is None and "config_groups" in given:
        method = "compressed-tensors"
    if not isinstance(method, str):
        raise UserError(f"{key} in the config has no quant_method, so its format is unknown. {REMEDY}")
    reader = _READERS.get(method.lower())
    if reader is None:
        raise _refused(NAMES.get(method.lower(), shown(method)))
    return reader(found)


def _refused(what: str) -> UserError:
    return UserError(
        f"the weights are quantized by {what}, which an export does not read; it reads {READABLE}. {REMEDY}"
    )


class _Keys:
    """The keys of a quantization_config, each checked when it is read."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self._where, self._values = where, values

    def value(self, key: str, *others: str) -> Any:
        """Return the first value that is set under one of these names, or None."""
        return next((x for name in (key, *others) if (x := self._values.get(name)) is not None), None)

    def whole(self, key: str, *others: str, default: int | None = None) -> int:
        value = self.value(key, *others)
        value = default if value is None else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise self.wrong(key, value, "a whole number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.value(key)
        if value is not None and type(value) is not bool:
            raise self.wrong(key, value, "true or false")
        return default if value is None else bool(value)

    def text(self, key: str, *others: str, default: str) -> str:
        value = self.value(key, *others)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return default if value is None else str(value).lower()

    def object(self, key: str) -> _Keys | None:
        value = self.value(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return None if not value else _Keys(f"{self._where}.{key}", value)

    def names(self) -> list[str]:
        return list(self._values)

    def pair(self, key: str) -> tuple[int, int] | None:
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2 or any(type(x) is not int or x < 1 for x in value):
            raise self.wrong(key, value, "two whole numbers")
        return value[0], value[1]

    def wrong(self, key: str, value: Any, needed: str) -> UserError:
        return UserError(
            f"{self._where}.{key} = {shown(value)} in the config; needed: {needed}. Use the config.json of the "
            "publisher"
        )


def _awq(keys: _Keys) -> Scheme:
    bits, version = keys.whole("bits", "w_bit", default=4), keys.text("version", "format", default="gemm")
    if version != "gemm" or keys.text("backend", default="auto") == "llm-awq":
        raise _refused(f"AWQ with the layout {version if version != 'gemm' else 'llm-awq'}")
    if bits != 4:
        raise _refused(f"AWQ with {bits} bits")
    if not keys.flag("zero_point", True):
        raise _refused("AWQ without zero points")
    return Scheme("awq", "AWQ", _group_size(keys, keys.whole("group_size", "q_group_size", default=128)))


def _gptq(keys: _Keys) -> Scheme:
    layout = keys.text("checkpoint_format", "format", default="gptq")
    layout = "marlin" if keys.flag("is_marlin_format", False) else layout
    if layout not in ("gptq", "gptq_v2"):
        raise _refused(f"GPTQ with the layout {layout}")
    if keys.text("pack_dtype", default="int32") != "int32":
        raise _refused(f"GPTQ packed in {keys.value('pack_dtype')}")
    for extra in ("adapter", "rotation"):
        if keys.value(extra):
            raise _refused(f"GPTQ with {extra} = {shown(keys.value(extra))}")
    bits, dynamic = keys.whole("bits"), keys.object("dynamic")
    if bits not in (4, 8):
        raise _refused(f"GPTQ with {bits} bits")
    size = _group_size(keys, keys.whole("group_size", default=128))
    # `dynamic` has other settings for some modules. Their tensors show them.
    return Scheme(
        "gptq",
        f"GPTQ ({layout})",
        size if dynamic is None else None,
        zero_offset=int(layout == "gptq"),
        ordered=keys.flag("desc_act", False) and dynamic is None,
    )


def _group_size(keys: _Keys, size: int) -> int:
    if size < 1 and size != -1:
        raise keys.wrong("group_size", size, "at least 1, or -1 for all inputs")
    return size


def _fp8(keys: _Keys) -> Scheme:
    scheme = keys.text("activation_scheme", default="dynamic")
    if scheme not in ("dynamic", "static"):
        raise keys.wrong("activation_scheme", scheme, "dynamic or static")
    if keys.text("expert_dtype", default="fp8") != "fp8":
        raise _refused(f"FP8 with experts in {keys.value('expert_dtype')}")
    _check_cache(keys)
    return Scheme("fp8", "FP8", block=keys.pair("weight_block_size"))


def _modelopt(keys: _Keys) -> Scheme:
    algorithm = keys.text("quant_algo", default="unknown")
    if algorithm not in ("fp8", "fp8_per_channel_per_token"):
        raise _refused(f"ModelOpt ({algorithm.upper()})")
    _check_cache(keys)
    return Scheme("fp8", "FP8 of ModelOpt")


def _check_cache(keys: _Keys) -> None:
    for key in ("kv_cache_scheme", "kv_cache_quant_algo", "kv_cache_quant_method"):
        if keys.value(key):
            raise UserError(
                f"the checkpoint quantizes the KV cache ({key} = {shown(keys.value(key))}), which an export does not "
                f"read: CACHE=... chooses the cache. Set {key} to null in config.json to export the weights alone"
            )


def _compressed(keys: _Keys) -> Scheme:
    sparsity = keys.object("sparsity_config")
    if sparsity is not None and sparsity.text("format", default="dense") != "dense":
        raise _refused(f"compressed-tensors with sparsity ({sparsity.value('format')})")
    if keys.value("transform_config"):
        raise _refused("compressed-tensors with transforms (transform_config)")
    _check_cache(keys)
    layout = keys.text("format", default="dense")
    groups = keys.object("config_groups")
    if groups is None:
        raise _refused(f"compressed-tensors ({layout}) without config_groups")
    found = []
    for name in groups.names():
        group = groups.object(name)
        weights = None if group is None else group.object("weights")
        if group is None or weights is None:
            raise _refused(f"compressed-tensors for activations only (config group {name})")
        found.append(_weight_group(group, weights, group.text("format", default=layout)))
    return Scheme("compressed-tensors", f"compressed-tensors ({layout})", groups=tuple(found))


# The layouts of compressed-tensors: whether the weights may be floats, and the bits of integers.
_LAYOUTS = {
    "pack-quantized": (False, (4, 8)),
    "int-quantized": (False, (8,)),
    "float-quantized": (True, ()),
    "naive-quantized": (True, (8,)),
}
_STRATEGIES = ("tensor", "channel", "group", "block")


def _weight_group(keys: _Keys, weights: _Keys, layout: str) -> WeightGroup:
    bits, kind = weights.whole("num_bits", default=8), weights.text("type", default="int")
    what = f"compressed-tensors ({layout}, {kind}, {bits} bits)"
    floats, integers = _LAYOUTS.get(layout, (False, ()))
    if kind not in ("int", "float") or (bits not in integers if kind == "int" else not floats or bits != 8):
        raise _refused(what)
    if weights.value("dynamic"):
        raise _refused(f"{what} with dynamic weights")
    size = weights.value("group_size")
    default = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = weights.text("strategy", default=default)
    if strategy not in _STRATEGIES:
        raise _refused(f"{what} with the strategy {strategy}")
    targets = keys.value("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise keys.wrong("targets", targets, "a list of modules")
    for target in targets:
        try:
            re.compile(target[3:] if target.startswith("re:") else "")
        except (re.error, OverflowError, RecursionError):
            raise keys.wrong("targets", target, "a valid regular expression") from None
    actorder = weights.value("actorder")
    block = weights.pair("block_structure") if strategy == "block" else None
    if strategy == "block" and block is None:
        raise weights.wrong("block_structure", None, "two whole numbers")
    return WeightGroup(
        tuple(targets),
        bits,
        kind == "float",
        weights.flag("symmetric", True),
        strategy,
        _group_size(weights, weights.whole("group_size")) if strategy == "group" else None,
        block,
        actorder in (True, "group", "dynamic"),
    )


_READERS = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed,
    "compressed_tensors": _compressed,
}
