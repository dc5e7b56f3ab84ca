"""Graphs for Ascend: compares their contents with kernels/ascend and their logits with transformers; the operators are
the kernels' definitions, or the kernels' sources on the stand-in."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgellama.__main__ import main
from edgellama.artifact.manifest import Artifact, TensorSpec
from edgellama.errors import UserError
from edgellama.exporter.checkpoint.open import opened_for
from edgellama.exporter.graph_spec import Shape
from edgellama.exporter.mindir import graph as mindir_graph
from edgellama.exporter.mindir.graph import Operation
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.onnx_twin.run import twin_engine
from edgellama.exporter.opsets.ascend_model_checks import check_model, check_operators
from edgellama.exporter.proof import verify
from edgellama.exporter.proof.rounded_ascend import RoundedAscend
from edgellama.exporter.writing.convert_config import conversion_config, read_config
from edgellama.kernels import weight_format
from edgellama.kernels.ascend import standin
from edgellama.kernels.ascend.chips import CHIPS
from edgellama.mindir import ascend
from edgellama.mindir.builder import Builder
from edgellama.mindir.check import graph_bytes
from edgellama.mindir.network import Network
from support import step_runs
from support.checkpoints import CONFIGS, DEFAULTS, export_all
from support.child import run_child
from support.operator_package import declared
from support.step_runs import expected, relative_error, run_schedule

# The configs of checkpoints.CONFIGS whose head size is a multiple of 16, including biases and a tied matrix.
# Only one keeps the vocabulary of 264, which LmHead does not take.
BLOCKS = {"vocab_size": 272}
LONG = {"max_position_embeddings": 1024}  # the context of the jobs that split
JOBS = {
    "310p": ("gqa-8to1-bias", "ascend310p", "fp16", {"head_dim": 16, **BLOCKS}),
    "310b": ("gqa-8to1-bias", "ascend310b", "fp16", {"head_dim": 16, **BLOCKS}),
    "910b": ("gqa-8to1-bias", "ascend910b", "fp16", {"head_dim": 16, **BLOCKS}),
    "tied": ("llama3", "ascend310b", "fp16", BLOCKS),
    "int8": ("gqa-3to1", "ascend310p", "int8", BLOCKS),
    "int4": ("gqa-8to1-bias", "ascend310b", "int4", {"head_dim": 16, **BLOCKS}),
    "windows": ("qwen2-windows-16", "ascend910b", "fp16", BLOCKS),
    "no-blocks": ("llama3", "ascend310p", "fp16", {}),
    "qwen3": ("qwen3", "ascend910b", "fp16", {"head_dim": 16, **BLOCKS}),
    "olmo3": ("olmo3", "ascend310b", "fp16", BLOCKS),
    "gemma3": ("gemma3", "ascend310p", "fp16", {"num_hidden_layers": 6, **BLOCKS}),
    "granite": ("granite-tied", "ascend310b", "fp16", BLOCKS),
    "phi3": ("phi3-partial", "ascend910b", "fp16", BLOCKS),
    # with few heads and a long context, a head's attention is split
    "split-310p": ("gqa-8to1-bias", "ascend310p", "fp16", {"head_dim": 16, **BLOCKS, **LONG}),
    "split-910b": ("qwen2-windows-16", "ascend910b", "fp16", {**BLOCKS, **LONG}),
}
# Tolerance of the logits against transformers in float32, as a fraction of their range: rounding to float16 and int8.
TOLERANCE = {"fp16": 4e-3, "int8": 5e-2, "int4": 0.6}
SAME = 2e-3  # float32 sums in two different orders, each rounded to float16


@pytest.fixture(scope="module")
def artifacts(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Artifact, Path]]:
    """The artifact and the checkpoint of each of JOBS, with the sizes of step_runs."""
    folder = tmp_path_factory.mktemp("ascend")
    sizes = {"context": step_runs.CONTEXT, "buckets": step_runs.BUCKETS[1:], "batch": step_runs.BATCH}
    models = {key: tiny_checkpoint(**{**CONFIGS[config], **changes}) for key, (config, _, _, changes) in JOBS.items()}
    jobs = [
        {"model": models[key], "target": target, "weights": weights, "verify": False, "out": folder / key, **sizes}
        | ({"context": 1024} if key.startswith("split") else {})
        for key, (_, target, weights, _) in JOBS.items()
    ]
    return {key: (Artifact.open(path), models[key]) for key, path in zip(JOBS, export_all(jobs), strict=True)}


def operations(artifact: Artifact) -> tuple[Operation, ...]:
    return mindir_graph.read(artifact.file(artifact.manifest.graphs[0].file)).operations


# --- results ---


@pytest.mark.parametrize("key", JOBS)
def test_the_twin_is_the_checkpoints_network(key: str, artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    """Rows of different lengths, chunks, bucket edges, decode, idle rows."""
    artifact, model = artifacts[key]
    found = run_schedule(twin_engine(artifact))
    assert relative_error(found, expected(model)) < TOLERANCE[artifact.manifest.weights_format]


@pytest.mark.parametrize("key", ["310p", "310b", "910b", "int8", "int4", "windows", "split-310p", "split-910b"])
def test_the_kernels_themselves_in_the_graph(key: str, artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    """The sources of kernels/ascend, on the stand-in of the chip, replace their definition: logits and caches."""
    artifact, model = artifacts[key]
    chip = artifact.manifest.target
    own = SimpleNamespace(
        fused_attention=functools.partial(standin.fused_attention, chip=chip),
        split_attention=functools.partial(standin.split_attention, chip=chip),
        join_attention=functools.partial(standin.join_attention, chip=chip),
        # the twin has converted it to float32
        quant_linear=functools.partial(standin.quant_linear, chip=chip),
        lm_head=lambda x, weight: standin.lm_head(x, weight.astype(np.float16), chip=chip),
    )
    kernels, definition = twin_engine(artifact, own), twin_engine(artifact)
    found, wanted = run_schedule(kernels), run_schedule(definition)
    assert relative_error(found, wanted) < SAME
    assert relative_error(found, expected(model)) < TOLERANCE[artifact.manifest.weights_format]
    for name, cache in definition.cache.arrays.items():
        np.testing.assert_allclose(
            kernels.cache.arrays[name].astype(np.float32), cache.astype(np.float32), rtol=SAME, atol=2 * SAME
        )


def test_310p_and_910b_share_one_graph(artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    """So the results for one of them are valid for both."""
    one, other = (artifacts[key][0] for key in ("310p", "910b"))
    assert [f.sha256 for f in one.manifest.files()] == [f.sha256 for f in other.manifest.files()]


def test_an_artifact_of_format_version_1_keeps_its_graph(artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    """Releases before SplitAttention wrote FusedAttention, however many cores the chip has."""
    artifact, _ = artifacts["split-310p"]
    manifest = replace(artifact.manifest, format_version=1)
    graph = manifest.graphs[0]
    old = graph_bytes(manifest, Network.of(manifest), graph, graph.file)
    assert b"FusedAttention" in old and b"SplitAttention" not in old
    new = graph_bytes(artifact.manifest, Network.of(artifact.manifest), graph, graph.file)
    assert new == artifact.file(graph.file).read_bytes() and b"SplitAttention" in new


# --- contents ---


@pytest.mark.parametrize("key", JOBS)
def test_custom_nodes_are_what_the_operator_package_defines(
    key: str, artifacts: dict[str, tuple[Artifact, Path]]
) -> None:
    """Compares names and order with op_host's sources; the graph engine finds inputs, outputs, attributes by them."""
    artifact, _ = artifacts[key]
    custom = [op for op in operations(artifact) if op.operator == "Custom"]
    kinds = [str(op.attributes["reg_op_name"]) for op in custom]
    layers = artifact.manifest.config["num_hidden_layers"]
    attention = []
    for layer in range(layers):  # every second layer of split-910b has a window, which is too short for a split
        split = key == "split-310p" or (key == "split-910b" and layer % 2 == 0)
        attention += ["SplitAttention", "JoinAttention"] if split else ["FusedAttention"]
    if key in ("int8", "int4"):
        attention = ["QuantLinear", "FusedAttention", *["QuantLinear"] * 4] * layers
    assert kinds == attention + ["LmHead"] * (key != "no-blocks")
    assert artifact.manifest.format_version == (2 if key.startswith(("split", "int")) else 1)
    for op, kind in zip(custom, kinds, strict=True):
        inputs, outputs = declared(kind, "Input"), declared(kind, "Output")
        assert list(op.attributes["input_names"]) == inputs and list(op.attributes["output_names"]) == outputs
        assert len(op.inputs) == len(inputs) and len(op.results) == len(outputs)
        given = set(op.attributes) - {"reg_op_name", "func_type", "input_names", "output_names"}
        assert given == set(declared(kind, "Attr"))
        caches = [op.inputs[i].partition(".")[0] for i, name in enumerate(inputs) if name in outputs]
        assert caches == (["k_cache", "v_cache"] if kind in ("FusedAttention", "SplitAttention") else [])
    assert len({op.name for op in custom}) == len(custom)


@pytest.mark.parametrize("key", JOBS)
def test_shapes_and_dtypes(key: str, artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    artifact, _ = artifacts[key]
    manifest, graph = artifact.manifest, artifact.manifest.graphs[0]
    read = mindir_graph.read(artifact.file(graph.file))
    assert (manifest.opset, manifest.target) == ("ascend", JOBS[key][1])
    assert (manifest.cache.dtype, manifest.cache.policy) == ("float16", "in_place")
    assert graph.buckets == step_runs.BUCKETS and len(manifest.graphs) == 1 and manifest.weights is None
    assert (read.inputs[0].name, read.inputs[0].shape) == ("tokens_by_step", (-1, step_runs.BATCH))
    assert not any(-1 in value.shape for value in read.inputs[1:])
    assert [v.name for v in read.inputs] == [s.name for s in graph.inputs]
    # one copy of the weights: each constant once, and otherwise only a header and padding
    places = [(p.offset, p.length) for p in read.parameters]
    assert len(set(places)) == len(places)
    assert sum(-(-length // 64) * 64 for _, length in places) + 64 == graph.data[0].bytes
    linear = {p.dtype for p in read.parameters if p.name.endswith("_proj.weight")}
    assert linear == ({"uint8"} if key in ("int8", "int4") else {"float16"})
    assert {p.dtype for p in read.parameters if "norm" in p.name or p.name.startswith("rope")} == {"float32"}


def test_the_conversion_config(artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    for artifact, _ in artifacts.values():
        parser = read_config(artifact.file("graphs/convert.ini"))
        assert parser["ascend_context"]["precision_mode"] == "enforce_origin"
        assert not parser.has_section("acl_init_options")  # the conversion chooses the SoC version
        build = {key: value.strip('"') for key, value in parser["acl_build_options"].items()}
        assert build["ge.dynamicBatchSize"].split(",") == [str(b) for b in artifact.manifest.buckets]
        shapes = [part.partition(":") for part in build["input_shape"].split(";")]
        read = mindir_graph.read(artifact.file(artifact.manifest.graphs[0].file))
        assert [(name, tuple(map(int, dims.split(",")))) for name, _, dims in shapes] == [
            (value.name, value.shape) for value in read.inputs
        ]


def test_a_graph_of_one_bucket_has_no_gears() -> None:
    """CANN refuses a single gear."""
    inputs = [TensorSpec("tokens_by_step", "int32", (-1, 2)), TensorSpec("start", "int32", (2,))]
    config = conversion_config(CHIPS["ascend310b"], inputs, (1,))
    assert 'input_shape="tokens_by_step:1,2;start:2"' in config and "dynamic" not in config
    config = conversion_config(CHIPS["ascend310b"], inputs, (1, 32))
    assert 'input_shape="tokens_by_step:-1,2;start:2"' in config and 'ge.dynamicBatchSize="1,32"' in config


# --- refused models ---


def test_an_operator_that_the_chip_lacks_is_named(artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    artifact, _ = artifacts["310p"]
    model = mindir_graph.parse(artifact.file(artifact.manifest.graphs[0].file))
    check_operators(model, CHIPS["ascend310p"])
    with pytest.raises(
        UserError, match=r"node layers/0/norm_qkv/norm/RmsNorm: operator RmsNorm .* Ascend 310B; known are Add"
    ):
        check_operators(model, CHIPS["ascend310b"])


def test_a_custom_operator_that_the_package_lacks_is_named(artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    artifact, _ = artifacts["310b"]
    model = mindir_graph.parse(artifact.file(artifact.manifest.graphs[0].file))
    for primitive in model.primitives:
        for attribute in primitive.attribute:
            if attribute.name == "reg_op_name":
                attribute.s = b"FusedMLP"
    with pytest.raises(UserError, match=r"self_attn.attention: kernels/ascend has no operator FusedMLP"):
        check_operators(model, CHIPS["ascend310b"])


@pytest.mark.parametrize(
    ("target", "weights", "config", "buckets", "words"),
    [
        (
            "ascend310b",
            "int4",
            {"intermediate_size": 80},
            (1, 32),
            "down_proj has 80 inputs and .* of 32 and 16",
        ),
        ("ascend910b", "fp16", {"head_dim": 20}, (1, 32), "head size 20: the attention kernels of Ascend 910B take"),
        ("ascend310p", "fp16", {"head_dim": 272}, (1, 32), "head size 272: .* multiples of 16 up to 256"),
        (
            "ascend310p",
            "fp16",
            {"num_attention_heads": 64, "num_key_value_heads": 1, "head_dim": 16},
            (1, 32),
            "64 query heads a key/value head; .* up to 32",
        ),
        ("ascend310p", "fp16", {}, range(1, 102), "BUCKETS has 101 sizes; the converter takes up to 100"),
    ],
)
def test_models_that_the_chip_or_the_kernels_cannot_run_are_refused(
    target: str, weights: str, config: dict[str, int], buckets: Sequence[int], words: str
) -> None:
    llama = LlamaConfig.from_dict({"model_type": "llama", **DEFAULTS, **config})
    with pytest.raises(UserError, match=words):
        check_model(llama, Shape(1, 32, 64, weights, "float16", target), buckets)


@pytest.mark.parametrize("weights", ["fp16", "int8", "int4"])
def test_models_that_the_chip_can_run_are_accepted(weights: str) -> None:
    shape = Shape(1, 32, 64, weights, "float16", "ascend310p")
    check_model(LlamaConfig.from_dict({"model_type": "llama", **DEFAULTS}), shape, range(1, 101))


@pytest.mark.parametrize("vocabulary", [272, 264])
def test_export_reports_logits_in_float16(
    vocabulary: int, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_checkpoint(vocab_size=vocabulary)
    command = ["-m", "edgellama", "export", str(model), "--out", str(tmp_path / "out")]
    options = ["--target", "ascend310p", "--context", "64", "--buckets", "4", "--no-verify"]
    done = run_child(*command, *options)
    assert ("logits will be float16" in done.stderr) == (vocabulary % 16 > 0)


def test_a_refused_export_leaves_nothing(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_checkpoint(intermediate_size=80)
    command = ["-m", "edgellama", "export", str(model), "--out", str(tmp_path / "out")]
    options = ["--target", "ascend310b", "--weights", "int8"]
    assert "Use WEIGHTS=fp16" in run_child(*command, *options, status=2).stderr
    assert not any(tmp_path.iterdir())


def test_a_large_artifact_is_proved_at_one_bucket(artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    """The time for a run of the twin is proportional to the size of its weights."""
    manifest = artifacts["310p"][0].manifest
    graph = manifest.graphs[0]
    data = (replace(graph.data[0], bytes=verify.TWIN_BYTES + 1),)
    edges, prefix, steps = verify.plan(replace(manifest, graphs=(replace(graph, data=data),)))
    assert (edges, prefix, steps) == ([step_runs.BUCKETS[1]], step_runs.BUCKETS[1] + 1, verify.TWIN_STEPS)
    assert len(verify.plan(manifest)[0]) > 5


@pytest.mark.parametrize("key", ["310p", "int8", "int4"])
def test_verify_runs_every_row_through_the_twin(
    key: str, artifacts: dict[str, tuple[Artifact, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    artifact, model = artifacts[key]
    assert main(["verify", str(artifact.path), "--checkpoint", str(model)]) == 0
    printed = " ".join(capfd.readouterr().err.split())
    assert "through the ONNX twin" in printed
    assert ("of their range over the" in printed) == (key != "310p")  # the reference over the rounded weights


@pytest.mark.parametrize("key", ["int8", "int4"])
def test_the_weights_are_the_numbers_of_the_cpu_target(key: str, artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    artifact, model = artifacts[key]
    checkpoint = opened_for(artifact.manifest, str(model))
    rounded = RoundedAscend(artifact, checkpoint)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"):
        exact = checkpoint.tensor(f"model.layers.1.{name}.weight")
        wanted = weight_format.unpack(weight_format.pack(exact, key), key, *exact.shape)
        assert np.array_equal(rounded.tensor(f"model.layers.1.{name}.weight"), wanted)


def test_verify_finds_a_wrong_matrix(artifacts: dict[str, tuple[Artifact, Path]], tmp_path: Path) -> None:
    artifact, model = artifacts["int4"]
    copy = shutil.copytree(artifact.path, tmp_path / "copy")
    graph = artifact.file(artifact.manifest.graphs[0].file)
    [matrix] = [p for p in mindir_graph.read(graph).parameters if p.name == "model.layers.0.mlp.down_proj.weight"]
    with (copy / artifact.manifest.graphs[0].data[0].file).open("r+b") as file:
        file.seek(matrix.offset)
        file.write(bytes(matrix.length))
    rounded = RoundedAscend(Artifact(copy, artifact.manifest), opened_for(artifact.manifest, str(model)))
    with pytest.raises(UserError, match=r"down_proj.weight .* differs in the artifact by 1.0e\+00 of the"):
        rounded.tensor("model.layers.0.mlp.down_proj.weight")


def test_int8_of_format_version_1_keeps_the_operator_of_cann(artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    artifact, _ = artifacts["int8"]
    network = replace(Network.of(artifact.manifest), format_version=1)
    builder = Builder()
    ascend.build(builder, network)
    assert {spec.dtype for spec in builder.weights if spec.name.endswith("_proj.weight")} == {"int8"}
    with pytest.raises(UserError, match="weights_format is 'int4', format_version is 1"):
        ascend.build(Builder(), replace(network, weights="int4"))
