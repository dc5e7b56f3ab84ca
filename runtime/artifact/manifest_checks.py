"""Checks that the parts of a manifest agree: config, graphs, inputs, outputs, cache and files.

Every graph is fed by these shapes. A manifest that contradicts itself is refused before anything is loaded, not at the
first run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .step_graph import CACHE_PREFIXES, SELF_MASKS, STEP_INPUTS, STRETCH

if TYPE_CHECKING:
    from .manifest import Graph, Manifest, TensorSpec

MOST_ELEMENTS = 1 << 31  # of one tensor: MindSpore Lite counts them in an int32
MOST_TOKENS = 1 << 31
MOST_FILES = 10_000
# Keys of the config, and the values that the runtime and `inspect` can use. A config may lack each of them.
POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
SIZES = {"num_hidden_layers": -1, "num_key_value_heads": 1, "head_dim": 3}  # key -> axis of the cache; -1: the layers


def check_agreement(manifest: Manifest) -> None:
    """Raise UserError, which names the first field that contradicts another."""
    _check_files(manifest)
    _check_config(manifest)
    _check_ids(manifest)
    for graph in manifest.graphs:
        _check_graph(manifest, graph)
    _check_weights(manifest)


def _check_files(manifest: Manifest) -> None:
    entries = list(manifest.files())
    _require(len(entries) <= MOST_FILES, "graphs", f"a list of {len(entries)} files", f"at most {MOST_FILES}")
    for entry in entries:
        _require(len(entry.file) <= 1000 and entry.file.isprintable(), "file", entry.file, "a name of printable text")
        hexadecimal = re.fullmatch(r"[0-9a-f]{64}", entry.sha256) is not None
        _require(hexadecimal, f"sha256 of {entry.file}", entry.sha256, "64 hexadecimal digits")
        _require(entry.bytes >= 0, f"bytes of {entry.file}", entry.bytes, "at least 0")
    twice = [name for name, count in Counter(entry.file for entry in entries).items() if count > 1]
    _require(not twice, "file", twice[:1], "each file once")


def _check_config(manifest: Manifest) -> None:
    config, cache = manifest.config, manifest.cache
    _require("vocab_size" in config, "config.vocab_size", None, "a whole number")
    for name in POSITIVE:
        if name in config:
            _require(_is_size(config[name]), f"config.{name}", config[name], "a positive whole number")
    window = config.get("sliding_window")
    _require(window is None or _is_size(window), "config.sliding_window", window, "null or a positive whole number")
    tied = config.get("tie_word_embeddings", False)
    _require(isinstance(tied, bool), "config.tie_word_embeddings", tied, "true or false")
    rope = config.get("rope_scaling")
    _require(rope is None or isinstance(rope, dict), "config.rope_scaling", rope, "null or an object")
    for name, axis in SIZES.items():
        needed = cache.layers if axis < 0 else cache.shape[axis]
        if name in config:
            _require(config[name] == needed, f"config.{name}", config[name], f"{needed}, as the cache has")
    heads, groups = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if heads is not None and groups is not None:
        _require(heads % groups == 0, "config.num_attention_heads", heads, f"a multiple of {groups} KV heads")


def _check_ids(manifest: Manifest) -> None:
    ids = {"bos_token_id": manifest.bos_token_id, "pad_token_id": manifest.pad_token_id}
    ids |= {f"eos_token_id[{i}]": number for i, number in enumerate(manifest.eos_token_id)}
    for name, number in ids.items():
        _require(number is None or -1 <= number < MOST_TOKENS, name, number, f"a token id below {MOST_TOKENS}")


def _check_graph(manifest: Manifest, graph: Graph) -> None:
    for specs in (graph.inputs, graph.outputs):
        twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
        _require(not twice, f"{graph.file}: tensor", twice[:1], "each name once")
        for spec in specs:
            small = math.prod(spec.shape) < MOST_ELEMENTS
            _require(small, f"{graph.file}: {spec.name}.shape", spec.shape, f"fewer than {MOST_ELEMENTS:,} elements")
    _check_step_inputs(manifest, graph)
    _check_caches(manifest, graph)
    _check_outputs(manifest, graph)


def _check_step_inputs(manifest: Manifest, graph: Graph) -> None:
    rows, tokens, capacity = manifest.batch, graph.bucket, manifest.context
    steps = {spec.name: spec for spec in graph.inputs if spec.name in STEP_INPUTS}
    both = ("tokens" in steps) + ("tokens_by_step" in steps)
    _require(both == 1, f"{graph.file}: inputs", sorted(steps), "one called tokens or tokens_by_step")
    for spec in steps.values():
        dtype, shapes = "int32", [(rows,), (rows, 1)]  # start, length, last
        if spec.name in ("tokens", "positions"):
            shapes = [(rows, tokens)]
        elif spec.name == "tokens_by_step":
            shapes = [(tokens, rows)]
        elif "mask" in spec.name:  # [B, 1, R*S or 1, S or C], R query heads per KV head
            dtype, columns = "float32", tokens if spec.name in SELF_MASKS else capacity
            queries = spec.shape[2] if len(spec.shape) == 4 else 0
            whole = queries % tokens == 0 or (spec.name == "cache_mask" and queries == 1)
            shapes = [(rows, 1, queries, columns)] if whole else [(rows, 1, tokens, columns)]
        _require_tensor(graph, spec, dtype, *shapes)


def _check_caches(manifest: Manifest, graph: Graph) -> None:
    cache = manifest.cache
    found = {spec.name: spec for spec in graph.inputs if spec.name.startswith(CACHE_PREFIXES)}
    needed = {f"{kind}_cache.{layer}" for layer in range(min(cache.layers, len(found) + 1)) for kind in "kv"}
    scaled = any("_scale." in name for name in found)
    if scaled:
        needed |= {name.replace("_cache.", "_scale.") for name in needed}
    _require(
        found.keys() == needed, f"{graph.file}: caches", _named(found), f"k_cache and v_cache of {cache.layers} layers"
    )
    _require(scaled <= (cache.dtype == "int8"), f"{graph.file}: scales", cache.dtype, "an int8 cache beside scales")
    for spec in found.values():
        if "_scale." in spec.name:
            _require_tensor(graph, spec, "int16", cache.shape[:3])
        else:
            _require_tensor(graph, spec, cache.dtype, cache.shape)


def _check_outputs(manifest: Manifest, graph: Graph) -> None:
    cache, outputs = manifest.cache, graph.outputs
    returned = 2 * cache.layers if cache.policy == "returned" else 0
    _require(
        len(outputs) == 1 + returned, f"{graph.file}: outputs", len(outputs), f"{1 + returned} (cache {cache.policy})"
    )
    _require_tensor(graph, outputs[0], "float32", (manifest.batch, manifest.config["vocab_size"]))
    rows, groups, _, width = cache.shape
    for index, spec in enumerate(outputs[1:]):
        layer, which = divmod(index, 2)
        _require(spec.name == f"{'kv'[which]}_new.{layer}", f"{graph.file}: output", spec.name, "k_new and v_new")
        _require_tensor(graph, spec, cache.dtype, (rows, groups, graph.bucket, width))


def _check_weights(manifest: Manifest) -> None:
    weights: dict[str, TensorSpec] = {}
    for graph in manifest.graphs:
        mine = weight_inputs(graph)
        if mine and manifest.weights is None:
            raise UserError(f"{graph.file[:80]}: input {mine[0].name[:80]} is unknown to this runtime")
        for spec in mine:
            same = weights.setdefault(spec.name, spec)
            _require(same == spec, f"{graph.file}: {spec.name}", spec.shape, f"{same.shape} {same.dtype}, as elsewhere")
            if spec.name.endswith(STRETCH):
                _require_tensor(graph, spec, "uint8", spec.shape[:1])


def weight_inputs(graph: Graph) -> list[TensorSpec]:
    """Return the inputs of a graph that come from the weights file."""
    return [x for x in graph.inputs if x.name not in STEP_INPUTS and not x.name.startswith(CACHE_PREFIXES)]


def _require_tensor(graph: Graph, spec: TensorSpec, dtype: str, *shapes: tuple[int, ...]) -> None:
    fits = spec.dtype == dtype and spec.shape in shapes
    _require(fits, f"{graph.file}: {spec.name}", f"{spec.dtype} {list(spec.shape)}", f"{dtype} {list(shapes[0])}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < MOST_ELEMENTS


def _named(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def _require(condition: bool, field: str, found: object, needed: str) -> None:
    if not condition:
        text = repr(found)
        raise UserError(f"{field[:120]} is {text if len(text) <= 80 else text[:77] + '...'}; needed: {needed}")
