"""Each rule of manifest_checks at its limits: the toy's manifests, changed in one place, are accepted or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from edgellama.artifact.manifest import CacheSpec, FileEntry, Graph, Manifest, TensorSpec
from edgellama.artifact.manifest_checks import MOST_FILES, check_agreement, weight_inputs
from edgellama.errors import UserError
from support.tiny import in_place_manifest, manifest

BATCH, BUCKET, CONTEXT, VOCAB = 2, 16, 64, 50
replace = dataclasses.replace


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """One graph with masks, which returns the new keys and values."""
    return manifest(tmp_path_factory.mktemp("portable"), batch=BATCH)


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A graph for each bucket, weights in a file of their own, caches written in place."""
    return in_place_manifest(tmp_path_factory.mktemp("cpu"), batch=BATCH)


def verdict(changed: Manifest) -> str:
    """Returns the message of the refusal; empty if the manifest is accepted."""
    try:
        check_agreement(changed)
    except UserError as error:
        return str(error)
    return ""


def with_graph(base: Manifest, **changes: Any) -> Manifest:
    return replace(base, graphs=(replace(base.graphs[0], **changes), *base.graphs[1:]))


def with_inputs(base: Manifest, *, drop: str = "", add: tuple[TensorSpec, ...] = ()) -> Manifest:
    """Returns a manifest whose first graph lacks the input `drop` and has the inputs `add` besides."""
    kept = tuple(spec for spec in base.graphs[0].inputs if spec.name != drop)
    return with_graph(base, inputs=(*kept, *add))


def with_input(base: Manifest, name: str, dtype: str, *shape: int) -> Manifest:
    return with_inputs(base, drop=name, add=(TensorSpec(name, dtype, shape),))


def with_outputs(base: Manifest, change: Callable[[int, TensorSpec], TensorSpec]) -> Manifest:
    outputs = tuple(change(index, spec) for index, spec in enumerate(base.graphs[0].outputs))
    return with_graph(base, outputs=outputs)


def test_the_toys_are_accepted(portable: Manifest, cpu: Manifest) -> None:
    assert verdict(portable) == verdict(cpu) == ""
    assert [spec.name for spec in weight_inputs(cpu.graphs[0])] == ["embedding", "position", "q", "k", "v"]
    assert weight_inputs(portable.graphs[0]) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("x" * 1000, "0" * 64, 0), ""),
        (("x" * 1001, "0" * 64, 1), "printable"),
        (("a\nb", "0" * 64, 1), "printable"),
        (("a", "0123456789abcdef" * 4, 1), ""),
        (("a", "0" * 63, 1), "sha256 of a is '0+'; needed: 64 hexadecimal digits"),
        (("a", "0" * 65, 1), "64 hexadecimal digits"),
        (("a", "A" * 64, 1), "64 hexadecimal digits"),
        (("a", "g" * 64, 1), "64 hexadecimal digits"),
        (("a", "0" * 64, -1), "bytes of a is -1; needed: at least 0"),
        (("step.mindir", "0" * 64, 1), r"file is \['step.mindir'\]; needed: each file once"),
    ],
)
def test_listed_files(portable: Manifest, entry: tuple[str, str, int], message: str) -> None:
    found = verdict(with_graph(portable, data=(FileEntry(*entry),)))
    if not message:
        assert found == ""
        return
    with pytest.raises(UserError, match=message):
        raise UserError(found)


def test_the_number_of_files_is_bounded(portable: Manifest) -> None:
    entries = tuple(FileEntry(f"f{i}", "0" * 64, 1) for i in range(MOST_FILES))
    assert verdict(with_graph(portable, data=entries[:-1])) == ""  # and the graph itself
    assert "a list of 10001 files'; needed: at most 10000" in verdict(with_graph(portable, data=entries))


LARGEST = (1 << 31) - 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": ...}, "config.vocab_size is None; needed: a whole number"),
        *(({"hidden_size": value}, "") for value in (1, LARGEST, ...)),
        *(({"hidden_size": value}, "config.hidden_size is ") for value in (0, -1, True, 1.5, "1", None, 1 << 31)),
        *(
            ({name: 0}, f"config.{name} is 0; needed: a positive whole number")
            for name in ("vocab_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")
        ),
        *(({"sliding_window": value}, "") for value in (None, 1, 5)),
        *(({"sliding_window": value}, "config.sliding_window is ") for value in (0, True, "all", -1)),
        *(({"tie_word_embeddings": value}, "") for value in (True, False, ...)),
        *(({"tie_word_embeddings": value}, "config.tie_word_embeddings is ") for value in (1, None, "yes")),
        *(({"rope_scaling": value}, "") for value in (None, {}, {"factor": 2})),
        *(({"rope_scaling": value}, "config.rope_scaling is ") for value in ([], 1, "linear")),
        ({"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 4}, ""),
        ({"num_hidden_layers": 3}, "config.num_hidden_layers is 3; needed: 2, as the cache has"),
        ({"num_key_value_heads": 1}, "config.num_key_value_heads is 1; needed: 2, as the cache has"),
        ({"head_dim": 64}, "config.head_dim is 64; needed: 4, as the cache has"),
        ({"num_key_value_heads": 2, "num_attention_heads": 6}, ""),
        ({"num_key_value_heads": 2, "num_attention_heads": 5}, "is 5; needed: a multiple of 2 KV heads"),
        ({"num_attention_heads": 5}, ""),
        ({"num_key_value_heads": 2}, ""),
    ],
)
def test_the_config(portable: Manifest, config: dict[str, Any], message: str) -> None:
    values = {key: value for key, value in {**portable.config, **config}.items() if value is not ...}
    found = verdict(replace(portable, config=values))
    assert message in found and bool(message) == bool(found)


@pytest.mark.parametrize("field", ["bos_token_id", "pad_token_id", "eos_token_id"])
def test_token_ids(portable: Manifest, field: str) -> None:
    def verdicts(*ids: int | None) -> list[str]:
        values = [(2, number) if field == "eos_token_id" else number for number in ids]
        return [verdict(replace(portable, **{field: value})) for value in values]

    assert verdicts(-1, 0, LARGEST) == [""] * 3
    name = "eos_token_id[1]" if field == "eos_token_id" else field
    assert [text.split(";")[0] for text in verdicts(-2, 1 << 31)] == [f"{name} is -2", f"{name} is {1 << 31}"]
    if field != "eos_token_id":
        assert verdicts(None) == [""]


def test_names_are_unique_in_a_graph(portable: Manifest) -> None:
    graph = portable.graphs[0]
    assert "tensor is ['last']" in verdict(with_inputs(portable, add=(graph.inputs[2],)))
    doubled = with_graph(portable, outputs=(*graph.outputs, graph.outputs[0]))
    assert "tensor is ['logits']; needed: each name once" in verdict(doubled)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((1 << 31,), False),
        ((LARGEST,), True),
        ((1 << 16, 1 << 15), False),
        ((1 << 16, (1 << 15) - 1), True),
        ((), True),
    ],
)
def test_elements_of_a_tensor_are_bounded(cpu: Manifest, shape: tuple[int, ...], fits: bool) -> None:
    found = verdict(with_inputs(cpu, add=(TensorSpec("more", "uint8", shape),)))
    assert ("more.shape" in found and "fewer than 2,147,483,648 elements" in found) != fits and bool(found) != fits


def test_a_graph_has_one_input_of_tokens(portable: Manifest) -> None:
    by_step = TensorSpec("tokens_by_step", "int32", (BUCKET, BATCH))
    assert verdict(with_inputs(portable, drop="tokens", add=(by_step,))) == ""
    for changed in (with_inputs(portable, drop="tokens"), with_inputs(portable, add=(by_step,))):
        assert "needed: one called tokens or tokens_by_step" in verdict(changed)


GROUPED = 2 * BUCKET  # R*S: two query heads per KV head


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("tokens", [(BATCH, BUCKET)], [(BATCH, BUCKET + 1), (BUCKET, BATCH), (BATCH,), (BATCH, 1)]),
        ("positions", [(BATCH, BUCKET)], [(BATCH, 1), (BATCH, BUCKET, 1)]),
        ("last", [(BATCH,), (BATCH, 1)], [(BATCH + 1,), (1, BATCH), (BATCH, BUCKET)]),
        ("start", [(BATCH,), (BATCH, 1)], [(1,), (BATCH, 2)]),
        ("length", [(BATCH,), (BATCH, 1)], [(1,), (BATCH, BUCKET)]),
        (
            "self_mask",
            [(BATCH, 1, GROUPED, BUCKET), (BATCH, 1, BUCKET, BUCKET)],
            [
                (BATCH, 1, BUCKET + 1, BUCKET),
                (BATCH, 1, 1, BUCKET),
                (BATCH, 1, GROUPED, CONTEXT),
                (BATCH, GROUPED, BUCKET),
            ],
        ),
        (
            "window_self_mask",
            [(BATCH, 1, GROUPED, BUCKET)],
            [(BATCH, 1, GROUPED, CONTEXT), (BATCH, 2, GROUPED, BUCKET), (BATCH, 1, 1, BUCKET)],
        ),
        (
            "cache_mask",
            [(BATCH, 1, 1, CONTEXT), (BATCH, 1, GROUPED, CONTEXT)],
            [(BATCH, 1, 2, CONTEXT), (BATCH, 1, 1, BUCKET), (1, 1, 1, CONTEXT), (BATCH, 1, 1, CONTEXT, 1)],
        ),
        (
            "window_cache_mask",
            [(BATCH, 1, GROUPED, CONTEXT)],
            [(BATCH, 1, 1, CONTEXT), (BATCH, 1, GROUPED, BUCKET), (BATCH, 1, BUCKET - 1, CONTEXT)],
        ),
    ],
)
def test_the_shape_of_each_step_input(
    portable: Manifest, name: str, good: list[tuple[int, ...]], bad: list[tuple[int, ...]]
) -> None:
    dtype, other = ("float32", "float16") if "mask" in name else ("int32", "int64")
    for shape in good:
        assert verdict(with_input(portable, name, dtype, *shape)) == ""
        assert f"{name} is '{other} {list(shape)}'; needed: {dtype}" in verdict(
            with_input(portable, name, other, *shape)
        )
    for shape in bad:
        found = verdict(with_input(portable, name, dtype, *shape))
        assert f"step.mindir: {name} is '{dtype} {list(shape)}'; needed: {dtype} [" in found
    if name == "self_mask":
        assert verdict(with_input(portable, name, dtype, *bad[0])).endswith("needed: float32 [2, 1, 16, 16]")
    odd = verdict(with_input(portable, "tokens_by_step", "int32", BATCH, BUCKET))
    assert "one called tokens" in odd


def test_tokens_by_step_are_the_other_way_round(portable: Manifest) -> None:
    for shape, fits in (((BUCKET, BATCH), True), ((BATCH, BUCKET), False)):
        add = (TensorSpec("tokens_by_step", "int32", shape),)
        assert bool(verdict(with_inputs(portable, drop="tokens", add=add))) != fits


def test_every_layer_has_its_two_caches(portable: Manifest) -> None:
    shape = portable.cache.shape
    for name in ("k_cache.0", "v_cache.1"):
        assert "needed: k_cache and v_cache of 2 layers" in verdict(with_inputs(portable, drop=name))
    for name in ("k_cache.2", "v_cache.x", "k_scale.0"):
        found = verdict(with_inputs(portable, add=(TensorSpec(name, "float32", shape),)))
        assert "needed: k_cache and v_cache of 2 layers" in found and "and 1 more" in found
    for dtype, wrong in (("float16", shape), ("float32", (*shape[:2], 63, shape[3]))):
        found = verdict(with_input(portable, "v_cache.1", dtype, *wrong))
        assert f"v_cache.1 is '{dtype} {list(wrong)}'; needed: float32 {list(shape)}" in found
    many = replace(portable, cache=replace(portable.cache, layers=1 << 30))  # not a set of so many names
    assert "caches" in verdict(many)


def quantized(base: Manifest, dtype: str = "int8", scale: str = "int16", drop: str = "") -> Manifest:
    """Returns a manifest with int8 caches and their scales in every graph."""
    shape = base.cache.shape

    def graph(old: Graph) -> Graph:
        caches = [TensorSpec(x.name, dtype, x.shape) if "_cache." in x.name else x for x in old.inputs]
        names = [f"{kind}_scale.{layer}" for layer in range(2) for kind in "kv"]
        scales = [TensorSpec(name, scale, shape[:3]) for name in names if name != drop]
        return replace(old, inputs=(*caches, *scales))

    return replace(base, graphs=tuple(map(graph, base.graphs)), cache=CacheSpec(dtype, "in_place", 2, shape))


def test_an_int8_cache_has_scales(cpu: Manifest) -> None:
    assert verdict(quantized(cpu)) == ""
    assert "caches" in verdict(quantized(cpu, drop="v_scale.1"))
    assert "scales is 'float32'; needed: an int8 cache beside scales" in verdict(quantized(cpu, "float32"))
    assert "k_scale.0 is 'float16 [2, 2, 64]'; needed: int16 [2, 2, 64]" in verdict(quantized(cpu, scale="float16"))
    wrong = with_input(quantized(cpu), "k_scale.1", "int16", 2, 2, 64, 4)
    assert "k_scale.1 is 'int16 [2, 2, 64, 4]'; needed: int16 [2, 2, 64]" in verdict(wrong)


def test_outputs_are_the_logits_and_what_the_cache_policy_returns(portable: Manifest, cpu: Manifest) -> None:
    outputs = portable.graphs[0].outputs
    assert "outputs is 4; needed: 5 (cache returned)" in verdict(with_graph(portable, outputs=outputs[:-1]))
    assert "outputs is 2; needed: 1 (cache in_place)" in verdict(with_graph(cpu, outputs=outputs[:2]))
    for dtype, shape in (("float16", (BATCH, VOCAB)), ("float32", (BATCH, VOCAB + 1)), ("float32", (BATCH + 1, VOCAB))):
        wrong = TensorSpec("logits", dtype, shape)
        found = verdict(with_outputs(portable, lambda i, spec, wrong=wrong: wrong if i == 0 else spec))
        assert f"logits is '{dtype} {list(shape)}'; needed: float32 [2, 50]" in found
    names = [spec.name for spec in outputs[1:]]
    assert names == ["k_new.0", "v_new.0", "k_new.1", "v_new.1"]
    longer = (BATCH, 2, BUCKET + 1, 4)
    for index in range(1, 5):
        other = outputs[index % 4 + 1].name + "x"
        found = verdict(with_outputs(portable, lambda i, x, at=index, to=other: replace(x, name=to) if i == at else x))
        assert f"output is '{other}'; needed: k_new and v_new" in found
        found = verdict(with_outputs(portable, lambda i, x, at=index: replace(x, shape=longer) if i == at else x))
        assert f"{names[index - 1]} is 'float32 [2, 2, 17, 4]'; needed: float32 [2, 2, 16, 4]" in found


def test_a_single_layer_returns_two_outputs(portable: Manifest) -> None:
    graph, cache = portable.graphs[0], replace(portable.cache, layers=1)
    inputs = tuple(spec for spec in graph.inputs if not spec.name.endswith("_cache.1"))
    for count, needed in ((3, ""), (2, "outputs is 2; needed: 3"), (4, "outputs is 4; needed: 3")):
        small = replace(portable, graphs=(replace(graph, inputs=inputs, outputs=graph.outputs[:count]),), cache=cache)
        assert needed in verdict(small) and bool(needed) == bool(verdict(small))


def test_graphs_agree_on_their_weights(cpu: Manifest) -> None:
    assert "input embedding is unknown to this runtime" in verdict(replace(cpu, weights=None))
    found = verdict(with_input(cpu, "q", "float32", 2, 16, 17))
    assert "step4.mindir: q is (2, 16, 16); needed: (2, 16, 17) float32, as elsewhere" in found
    found = verdict(with_input(cpu, "q", "float16", 2, 16, 16))
    assert "step4.mindir: q is (2, 16, 16); needed: (2, 16, 16) float16, as elsewhere" in found
    assert verdict(with_inputs(cpu, drop="q")) == ""  # a graph need not take every weight
    for dtype, shape, fits in (("uint8", (64,), True), ("int8", (64,), False), ("uint8", (8, 8), False)):
        stretch = TensorSpec("model.layers.0.*", dtype, shape)
        assert bool(verdict(with_inputs(cpu, add=(stretch,)))) != fits


def test_a_long_value_is_shortened_in_the_message(portable: Manifest) -> None:
    for length, shown in ((78, "'" + "x" * 78 + "'"), (79, "'" + "x" * 76 + "...")):
        found = verdict(replace(portable, config={**portable.config, "rope_scaling": "x" * length}))
        assert found == f"config.rope_scaling is {shown}; needed: null or an object"
