"""The cost model: its sizes equal those of exported artifacts, and its operations equal torch's count."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import edgellama.exporter.plan
from edgellama.__main__ import main
from edgellama.artifact import sizes
from edgellama.artifact.manifest import Artifact, Manifest
from edgellama.errors import UserError
from edgellama.exporter.checkpoint.presets import PRESETS
from edgellama.exporter.mindir import graph as mindir_graph
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.plan.boards import BOARDS
from edgellama.exporter.plan.command import PlanOptions, describe, make
from edgellama.exporter.plan.cost import Plan, roofline
from edgellama.exporter.plan.estimate import operators
from edgellama.exporter.plan.memory import run_time_memory
from edgellama.exporter.plan.tensors import parameters
from edgellama.exporter.targets import TARGETS
from edgellama.kernels.ascend.chips import Board
from support.checkpoints import CONFIGS, export_all
from support.child import run_child, run_python

CACHE_NAMES = {"int16": "float16"}
SIZES: dict[str, Any] = {"context": 48, "batch": 2, "buckets": [4, 16], "verify": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("plain", {"target": "cpu", "weights": "int8"}),
    "int4, int8 cache": ("tied-1to1", {"target": "cpu", "weights": "int4", "cache": "int8"}),
    "bf16": ("gqa-8to1-bias", {"target": "cpu", "weights": "bf16"}),
    "fp32": ("head-size-20", {"target": "cpu", "weights": "fp32"}),
    "one bucket": ("mlp-bias", {"target": "cpu", "weights": "int8", "cache": "float32", "buckets": [1]}),
    "portable": ("plain", {"target": "portable"}),
    "ascend310p": ("wide", {"target": "ascend310p"}),
    "ascend310p int8": ("wide", {"target": "ascend310p", "weights": "int8"}),
    "ascend310b int4": ("wide", {"target": "ascend310b", "weights": "int4"}),
    "ascend310b": ("wide", {"target": "ascend310b"}),
    "portable tied": ("head-size-20", {"target": "portable"}),
    "portable, scaled queries": ("ministral3-long", {"target": "portable"}),
}


WIDE = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "attention_bias": True, "mlp_bias": True}


@pytest.fixture(scope="module")
def artifacts(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plan")
    jobs = [
        {**SIZES, **settings, "model": tiny_checkpoint(**{**CONFIGS, "wide": WIDE}[config]), "out": folder / str(index)}
        for index, (config, settings) in enumerate(CASES.values())
    ]
    return dict(zip(CASES, export_all(jobs), strict=True))


def planned(manifest: Manifest, **changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "target": manifest.target,
        "weights": manifest.weights_format,
        "cache": CACHE_NAMES.get(manifest.cache.dtype, manifest.cache.dtype),
        "context": manifest.context,
        "batch": manifest.batch,
        "buckets": manifest.buckets,
    }
    return make(LlamaConfig.from_dict(manifest.config), **{**settings, **changes})


@pytest.mark.parametrize("case", CASES)
def test_sizes_are_the_artifacts(case: str, artifacts: dict[str, Path]) -> None:
    artifact = Artifact.open(artifacts[case])
    manifest = artifact.manifest
    plan = planned(manifest)
    assert plan.buckets == manifest.buckets
    assert plan.weights_file() == sizes.weights_bytes(manifest)
    assert plan.cache_bytes() == sizes.cache_bytes(manifest)
    if manifest.target == "cpu":  # its kernels keep further results, in addition to those of the graph
        assert plan.step_weight_bytes() == sizes.step_weight_bytes(manifest)
    graphs = {graph.file: mindir_graph.read(artifact.file(graph.file)) for graph in manifest.graphs}
    estimated, found = plan.memory(), run_time_memory(manifest, graphs)
    assert (estimated.weights, estimated.copies) == (found.weights, found.copies)
    if manifest.target == "cpu":
        assert found.activations < estimated.activations
    else:
        assert estimated.activations == pytest.approx(found.activations, rel=0.3)


@pytest.mark.parametrize("config", ["plain", "tied-1to1", "head-size-20", "qwen2"])
def test_parameters_are_those_of_the_checkpoint(config: str, tiny_checkpoint: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(**CONFIGS[config]))
    assert parameters(LlamaConfig.from_dict(model.config.to_dict())) == model.num_parameters()


@pytest.mark.parametrize("rows", [1, 3])
def test_operations_are_those_that_torch_counts(rows: int, tiny_checkpoint: Callable[..., Path]) -> None:
    """transformers computes every score of a prompt and masks half of them; this test adds the difference."""
    folder = tiny_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    config = LlamaConfig.from_dict(json.loads((folder / "config.json").read_text()))
    plan = make(config, context=64, batch=rows, buckets=(16,))
    tokens = torch.randint(0, config.vocab_size, (rows, 17))
    score = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers * rows
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        cache = model(tokens[:, :16], logits_to_keep=1, use_cache=True).past_key_values
    assert plan.cost(16, 0).flops == counted.get_total_flops() - score * (16 * 16 - 16 * 17 // 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(tokens[:, 16:], past_key_values=cache, use_cache=True)
    assert plan.cost(1, 16).flops == counted.get_total_flops()


def test_a_window_bounds_what_a_step_sees() -> None:
    config = {**PRESETS["llama3-8b"].hf_config, "model_type": "mistral", "sliding_window": 1024}
    windowed, whole = make(LlamaConfig.from_dict(config), context=8192), make(PRESETS["llama3-8b"].config, context=8192)
    assert windowed.cost(1, 500) == whole.cost(1, 500)
    near, far = windowed.cost(1, 1023), windowed.cost(1, 8000)
    assert near == replace(far, start=1023) and near.cache_bytes == 1023 * 32 * 2 * 8 * 128 * 2
    assert whole.cost(1, 8000).cache_bytes > 7 * near.cache_bytes


def test_ascend_holds_half_precision_and_quantized_layers() -> None:
    config = PRESETS["llama3-8b"].config
    half, quantized = make(config, target="ascend310p"), make(config, target="ascend310p", weights="int8")
    norms, rope = 65 * 4096 * 4, 2 * 2048 * 64 * 4
    exact = 2 * (parameters(config) - 65 * 4096) + norms + rope
    assert 0 <= half.weights_file() - exact < 64 * 400
    tables = 2 * 2 * 128256 * 4096
    linear = parameters(config) - 65 * 4096 - tables // 2
    assert 0 <= quantized.weights_file() - (tables + linear * 8.5 / 8 + norms + rope) < 64 * 800
    four = make(config, target="ascend310b", weights="int4")
    assert 0 <= four.weights_file() - (tables + linear * 4.75 / 8 + norms + rope) < 64 * 800
    # the embedding is only read row by row
    assert half.step_weight_bytes() == half.weights_file() - 64 - rope - tables // 2


@pytest.mark.parametrize(
    ("model", "target"),
    [("llama3.2-1b", "ascend310b"), ("llama3.1-8b", "ascend310p"), ("smollm2-1.7b-instruct", "cpu")],
)
def test_the_largest_context_is_the_last_that_fits(model: str, target: str) -> None:
    plan = make(PRESETS[model].config, target=target, batch=4)
    for board in BOARDS[target]:
        largest = plan.largest_context(board)
        if largest:
            assert plan.with_context(largest).total() <= board.available
        if largest < plan.config.max_position_embeddings:
            assert plan.with_context(largest + 1).total() > board.available
    assert plan.largest_context(Board("none", 0, 0)) == 0


def test_a_pass_takes_the_longer_of_reading_and_computing() -> None:
    plan = make(PRESETS["llama3-8b"].config, target="ascend310p")
    board = BOARDS["ascend310p"][0]
    assert board.bandwidth and board.flops
    memory, compute = roofline(plan.cost(1, 0), board.bandwidth, board.flops)
    # 8.0 billion float16 weights without the half billion of the embedding, at 204.8 GB/s, and two operations each
    assert memory == pytest.approx(2 * 7.5e9 / 204.8e9, rel=0.01) and compute == pytest.approx(
        2 * 7.5e9 / 70e12, rel=0.01
    )
    times = {
        (t["bucket"], t["start"]): t
        for t in describe(PlanOptions("llama3-8b", {"target": "ascend310p"}))["boards"][0]["times"]
    }
    assert times[1, 1024]["seconds"] == times[1, 1024]["memory_seconds"] > times[1, 1024]["compute_seconds"]
    assert times[512, 0]["seconds"] == times[512, 0]["compute_seconds"] > times[512, 0]["memory_seconds"]
    assert times[512, 0]["tokens_per_second"] == 512 / times[512, 0]["seconds"]


def test_an_estimate_is_slower_than_the_lower_bound_and_reads_as_published() -> None:
    """Public figures for 8 billion parameters in float16 on an Atlas 300I: 2 to 10 tokens a second (Qwen3-8B)."""
    found = describe(PlanOptions("llama3-8b", {"target": "ascend310p"}))
    for board in found["boards"]:
        for one in board["times"]:
            slow, fast = one["estimated_seconds"]
            assert slow > fast > one["seconds"]
    slow, fast = found["boards"][0]["times"][0]["estimated_seconds"]
    assert 5 < 1 / slow < 1 / fast < 12
    assert describe(PlanOptions("llama3-8b", {}))["boards"][0]["times"] is None


@pytest.mark.parametrize("case", ["ascend310p", "ascend310b"])
def test_the_estimate_counts_the_operators_of_the_graph(artifacts: dict[str, Path], case: str) -> None:
    artifact = Artifact.open(artifacts[case])
    [graph] = [mindir_graph.read(artifact.file(graph.file)) for graph in artifact.manifest.graphs]
    views = ("Reshape", "TupleGetItem", "MakeTuple", "Depend")
    launched = sum(op.operator not in views for op in graph.operations)
    assert operators(planned(artifact.manifest)) == pytest.approx(launched, rel=0.25)


def test_the_records_of_the_op_sets_need_no_mindspore_and_are_those_of_the_cells() -> None:
    code = (
        "import sys\nfrom edgellama.exporter.targets import TARGETS\n"
        "assert not {'mindspore', 'torch', 'transformers'} & set(sys.modules)\n"
        "for target in TARGETS.values():\n"
        "    assert target.opset.cells().SPEC is target.opset\n"
        "print('true')"
    )
    assert run_python(code)


def documented(found: Any, text: str) -> None:
    """Asserts that the module's docstring has every key, except for those of the config."""
    for key, value in found.items():
        assert key in text, key
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict) and key != "config":
                documented(inner, text)


def test_presets_need_no_download(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "edgellama.exporter.plan.command.resolve", lambda model: pytest.fail(f"{model} would be downloaded")
    )
    for name, target in zip(PRESETS, itertools.cycle(TARGETS), strict=False):
        if PRESETS[name].config.model_type in ("gemma2", "hunyuan_v1_dense") and target.startswith("ascend"):
            target = "cpu"
        assert main(["plan", name, "--target", target, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        documented(found, edgellama.exporter.plan.__doc__ or "")
        assert found["memory"]["total"] == sum(v for k, v in found["memory"].items() if k != "total")


def test_the_table_says_what_fits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The 310B shares its memory with the host, which holds the file during the copy: 2 x 16 GB for 8B."""
    monkeypatch.setenv("COLUMNS", "200")
    fits = {}
    for model in ("llama3-8b", "llama3.2-1b"):
        assert main(["plan", model, "--target", "ascend310b"]) == 0
        printed = capsys.readouterr().out
        fits[model] = {
            line.split(",")[0].strip(): line.split() for line in printed.splitlines() if " GB " in line and "%" in line
        }
        assert "lower bounds" in printed and "hiascend.com" in printed
    for board in ("OrangePi AIpro 8T", "OrangePi AIpro 20T"):
        assert "no" in fits["llama3-8b"][board] and "none" in fits["llama3-8b"][board]
        assert "yes" in fits["llama3.2-1b"][board]


def test_a_measurement_of_the_artifact_is_held_against_the_plan(
    artifacts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "bench.json"
    lengths = ["--prompt-lengths", "3,16", "--depths", "8", "--batches", "2", "--repeats", "1", "--steps", "2"]
    run_child("-m", "edgellama", "bench", str(artifacts["int8"]), *lengths, "--json", str(report))
    model = Artifact.open(artifacts["int8"]).manifest.source.model
    assert main(["plan", model, "--measured", str(report), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert [entry["what"] for entry in measured["sizes"]] == ["weights file", "weights a step reads", "cache"]
    assert all(entry["predicted"] == entry["found"] for entry in measured["sizes"])
    names = ["prefill of 3 tokens", "prefill of 16 tokens", "decode step after 8 tokens"]
    assert [entry["what"] for entry in measured["times"]] == names
    for entry in measured["times"]:
        assert entry["ratio"] == entry["found"] / entry["predicted"] > 0
    assert main(["plan", model, "--measured", str(report)]) == 0
    assert "measured / predicted" in capsys.readouterr().out
    assert main(["plan", model, "--measured", str(report), "--batch", "1"]) == 2
    assert "--batch is 1; the measured artifact has 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "ascend910"}, "TARGET 'ascend910' is unknown; choose from cpu"),
        (
            {"target": "ascend310b", "weights": "w4g32"},
            "WEIGHTS 'w4g32' with TARGET ascend310b",
        ),
        ({"cache": "int4"}, "CACHE 'int4' with TARGET cpu"),
        ({"context": 8193}, r"CONTEXT is 8,193; this model's positions go to 8,192"),
        ({"batch": 0}, "BATCH is 0"),
        ({"buckets": (32, 4096)}, "BUCKETS holds 4096; a bucket has 1 to 2,048"),
    ],
)
def test_impossible_options_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(PRESETS["llama3-8b"].config, **settings)


def test_a_file_that_is_not_a_measurement_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, message in (
        ("", "not valid JSON"),
        ("{}", "schema_version is None"),
        ("[1]", "a JSON list; needed: an object"),
    ):
        (tmp_path / "x.json").write_text(text)
        assert main(["plan", "llama3-8b", "--measured", str(tmp_path / "x.json")]) == 2
        assert message in capsys.readouterr().err
    assert main(["plan", "llama3-9b"]) == 2
    assert "neither a preset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
        ("smollm3-3b", 3_075_098_624),
        ("gemma-3-1b-it", 999_885_952),
        ("falcon3-1b-instruct", 1_669_408_768),
        ("falcon3-3b-instruct", 3_227_655_168),
        ("falcon3-7b-instruct", 7_455_550_464),
        ("falcon3-10b-instruct", 10_305_653_760),
        ("mistral-nemo-instruct-2407", 12_247_782_400),
        ("qwen3-4b-instruct-2507", 4_022_468_096),
        ("deepseek-r1-distill-qwen-1.5b", 1_777_088_000),
        ("deepseek-r1-distill-qwen-7b", 7_615_616_512),
        ("deepseek-r1-distill-qwen-14b", 14_770_033_664),
        ("deepseek-r1-distill-llama-8b", 8_030_261_248),
        ("gemma-2-2b-it", 2_614_341_888),
        ("gemma-2-9b-it", 9_241_705_984),
        ("gemma-2-27b-it", 27_227_128_320),
        ("phi-3-mini-4k-instruct", 3_821_079_552),
        ("phi-4-mini-instruct", 3_836_021_760),
        ("phi-4", 14_659_507_200),
        ("olmo-2-0425-1b-instruct", 1_484_916_736),
        ("olmo-2-1124-7b-instruct", 7_298_617_344),
        ("olmo-2-1124-13b-instruct", 13_716_198_400),
        ("exaone-4.0-1.2b", 1_279_391_488),
        ("hunyuan-1.8b-instruct", 1_791_080_448),
        ("granite-3.3-2b-instruct", 2_533_539_840),
        ("granite-3.3-8b-instruct", 8_170_864_640),
    ],
)
def test_parameters_are_those_that_the_publisher_counts(name: str, published: int) -> None:
    """The model pages state the number of elements of the safetensors files."""
    assert parameters(PRESETS[name].config) == published
