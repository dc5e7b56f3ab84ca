"""LoRA adapters at run time: equal to PEFT's own result, kept apart in a batch, the cache and sessions, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama import LlamaForCausalLM
from edgellama.backend import adapters as backend
from edgellama.engine.adapters import BASE
from edgellama.errors import UserError
from support.adapters import FUSED, make_adapter, peft_logits
from support.checkpoints import CONFIGS, export_all

NEW = 4
PROMPTS = np.random.default_rng(3).integers(3, 256, (3, 19))  # others may be pad tokens
# An architecture, and what PEFT's LoraConfig can say of two adapters.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {"r": 3, "lora_alpha": 20, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "head-size-20": ({"use_rslora": True}, {"target_modules": ["k_proj", "up_proj"], "layers_to_transform": [1]}),
    "qwen3": ({"rank_pattern": {"q_proj": 2, "v_proj": 7}, "alpha_pattern": {"up_proj": 1.5}}, {"r": 1}),
    "granite-tied": ({}, {"target_modules": ["o_proj", "down_proj"]}),
    "gemma": ({}, {"target_modules": "all-linear"}),
    "gemma3": ({}, {"target_modules": ["gate_proj", "o_proj"]}),
    "olmo2-bias": ({}, {"target_modules": ["v_proj", "o_proj"]}),
    "phi3-partial": ({"target_modules": FUSED}, {"target_modules": ["qkv_proj"], "r": 9}),
}


@pytest.fixture(scope="module")
def artifacts(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An artifact of the cpu target of each architecture: three rows, float32; and of the first with int8 weights."""
    folder = tmp_path_factory.mktemp("adapters")
    # The context is not above the original one of "phi3-partial": transformers takes the short factors of a short text.
    common: dict[str, Any] = {"target": "cpu", "context": 32, "buckets": [16], "batch": 3, "verify": False}
    jobs = [
        {"model": tiny_checkpoint(**CONFIGS[name]), "out": folder / name, "weights": "fp32", **common} for name in CASES
    ]
    plain = tiny_checkpoint(**CONFIGS["plain"])
    jobs += [{"model": plain, "out": folder / weights, "weights": weights, **common} for weights in ("int8", "int4")]
    export_all(jobs)
    return {job["out"].name: job["out"] for job in jobs}


@pytest.fixture(scope="module")
def adapters(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters for the configuration "plain"."""
    base, folder = tiny_checkpoint(**CONFIGS["plain"]), tmp_path_factory.mktemp("two")
    return [make_adapter(base, folder / name, seed=i, **CASES["plain"][i]) for i, name in enumerate(("one", "two"))]


@pytest.fixture
def model(artifacts: dict[str, Path], adapters: list[Path]) -> LlamaForCausalLM:
    """The model with both adapters; neither is active."""
    model = LlamaForCausalLM.from_pretrained(artifacts["plain"], threads=2)
    for name, folder in zip(("one", "two"), adapters, strict=True):
        model.load_adapter(folder, name)
    model.set_adapter(BASE)
    return model


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.ptp(expected))


def run(model: LlamaForCausalLM, prompts: np.ndarray = PROMPTS, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens [rows, n + NEW], and the logits of each new token [rows, NEW, V]."""
    settings = {"do_sample": False, "eos_token_id": [], "max_new_tokens": NEW, **settings}
    out: Any = model.generate(prompts, return_dict_in_generate=True, output_logits=True, **settings)
    return out.sequences, np.stack(out.logits, axis=1)


def first_tokens(model: LlamaForCausalLM, prompts: np.ndarray = PROMPTS, **settings: Any) -> list[list[int]]:
    return run(model, prompts, **settings)[0][:, prompts.shape[1] :].tolist()


@pytest.mark.parametrize("name", CASES)
def test_two_adapters_in_one_batch_equal_peft(
    name: str, artifacts: dict[str, Path], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_checkpoint(**CONFIGS[name])
    model = LlamaForCausalLM.from_pretrained(artifacts[name], threads=2)
    given: list[list[tuple[Path, float]]] = []
    for index, (settings, scale) in enumerate(zip(CASES[name], (1.0, -0.5), strict=True)):
        folder = make_adapter(base, tmp_path / str(index), seed=index, **settings)
        model.load_adapter(folder, f"adapter{index}", scale=scale)
        given.append([(folder, scale)])
    tokens, found = run(model, adapter_names=["adapter1", BASE, "adapter0"])
    for row, active in enumerate((given[1], [], given[0])):
        expected = peft_logits(base, active, tokens[row : row + 1])[0, -NEW - 1 : -1]
        assert error(found[row], expected) < 1e-4
        assert (found[row].argmax(-1) == tokens[row, -NEW:]).all()
        if active:
            assert error(found[row], peft_logits(base, [], tokens[row : row + 1])[0, -NEW - 1 : -1]) > 0.01


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_product_is_added_to_rounded_weights(
    weights: str, artifacts: dict[str, Path], adapters: list[Path], tiny_checkpoint: Callable[..., Path]
) -> None:
    """The float network with the artifact's rounded weights, and the adapter merged into them without rounding."""
    from edgellama.exporter.checkpoint.merged import merged
    from edgellama.exporter.checkpoint.open import open_checkpoint
    from edgellama.exporter.proof.float_reference import reference_logits
    from edgellama.exporter.proof.rounded_checkpoint import RoundedCheckpoint

    model = LlamaForCausalLM.from_pretrained(artifacts[weights], threads=2)
    model.load_adapter(adapters[0])
    tokens, found = run(model, PROMPTS[:1])
    checkpoint = open_checkpoint(tiny_checkpoint(**CONFIGS["plain"]))
    rounded = RoundedCheckpoint(artifacts[weights], model.artifact.manifest, checkpoint)
    positions = list(range(tokens.shape[1] - NEW - 1, tokens.shape[1] - 1))

    def expected(*folders: Path) -> np.ndarray:
        with_adapter = merged(rounded, [(str(folder), 1.0) for folder in folders])
        return reference_logits(with_adapter, tokens[0].astype(np.int32), positions)[0]

    assert error(found[0], expected(adapters[0])) < 0.02  # activations are rounded, too
    assert error(found[0], expected()) > 0.2


def test_a_row_does_not_depend_on_the_adapters_of_the_others(model: LlamaForCausalLM) -> None:
    names = ["two", BASE, "one"]
    together = run(model, adapter_names=names)
    for row, name in enumerate(names):
        alone = run(model, PROMPTS[row : row + 1], adapter_names=[name])
        np.testing.assert_array_equal(alone[0][0], together[0][row])
        np.testing.assert_allclose(alone[1][0], together[1][row], atol=1e-4)


def test_the_active_adapter_follows_peft(model: LlamaForCausalLM, adapters: list[Path]) -> None:
    """set_adapter, disable_adapters, enable_adapters and delete_adapter act as in transformers."""
    of = {name: first_tokens(model, adapter_names=[name] * 3) for name in ("one", "two", BASE)}
    assert len({str(tokens) for tokens in of.values()}) == 3
    assert model.active_adapters() == [] and first_tokens(model) == of[BASE]
    model.set_adapter("one")
    assert model.active_adapters() == ["one"] and first_tokens(model) == of["one"]
    model.disable_adapters()
    assert model.active_adapters() == [] and first_tokens(model) == of[BASE]
    assert first_tokens(model, adapter_names=["two"] * 3) == of["two"]
    model.enable_adapters()
    assert model.active_adapters() == ["one"] and first_tokens(model) == of["one"]
    model.set_adapter(["two"])
    assert [piece.id for piece in model.stream(PROMPTS[0], max_new_tokens=NEW, do_sample=False)] == of["two"][0]
    stream = model.stream(PROMPTS[0], max_new_tokens=NEW, do_sample=False, adapter_names=["one"])
    assert [piece.id for piece in stream] == of["one"][0]
    model.delete_adapter("two")
    assert model.active_adapters() == [] and first_tokens(model) == of[BASE]
    model.load_adapter(adapters[0], "two")  # the first one that becomes active again, of the other folder
    assert model.active_adapters() == ["two"] and first_tokens(model, reuse_prefix=True) == of["one"]


def test_the_first_adapter_is_active(artifacts: dict[str, Path], adapters: list[Path]) -> None:
    model = LlamaForCausalLM.from_pretrained(artifacts["plain"])
    model.load_adapter(adapters[0])
    model.load_adapter(adapters[1], "other")
    assert model.active_adapters() == ["default"]


def test_beams_and_several_answers_have_the_adapter_of_their_prompt(
    model: LlamaForCausalLM, adapters: list[Path], tiny_checkpoint: Callable[..., Path]
) -> None:
    import torch
    from peft import PeftModel

    from support.adapters import load_base

    peft: Any = PeftModel.from_pretrained(load_base(tiny_checkpoint(**CONFIGS["plain"])), adapters[1])
    common: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW}
    prompts = torch.tensor(PROMPTS[:1])
    beams = peft.generate(input_ids=prompts, num_beams=3, attention_mask=torch.ones_like(prompts), **common)
    found = model.generate(PROMPTS[:2], num_beams=3, adapter_names=["two", BASE], **common)
    np.testing.assert_array_equal(found[0, : beams.shape[1]], beams[0])
    several = {"num_return_sequences": 3, "do_sample": True, "seed": 1, "temperature": 1e-4}
    of = first_tokens(model, PROMPTS[:2], adapter_names=["two", "one"], **several)
    assert of[:3] == [of[0]] * 3 and of[3:] == [of[3]] * 3  # so cold that they are equal
    assert [of[0], of[3]] == first_tokens(model, PROMPTS[:2], adapter_names=["two", "one"])


def test_equal_prompts_of_different_adapters_are_computed_apart(model: LlamaForCausalLM) -> None:
    same = np.repeat(PROMPTS[:1], 3, axis=0)
    one, two, again = first_tokens(model, same, adapter_names=["one", "two", "one"])
    assert one == again != two
    assert [two] == first_tokens(model, same[:1], adapter_names=["two"])


def test_a_prefix_serves_only_its_own_adapter(model: LlamaForCausalLM) -> None:
    def generate(name: str) -> tuple[list[int], int]:
        out: Any = model.generate(
            PROMPTS[:1], adapter_names=[name], reuse_prefix=True, do_sample=False, max_new_tokens=NEW,
            return_dict_in_generate=True,
        )  # fmt: skip
        return out.sequences[0].tolist(), out.timings.cached_tokens

    fresh = {}
    for name in (BASE, "one", "two"):
        fresh[name], cached = generate(name)
        assert cached == 0
    for name in (BASE, "one", "two"):
        assert generate(name) == (fresh[name], PROMPTS.shape[1] - 1)


def test_models_of_one_process_have_their_own_adapters(
    model: LlamaForCausalLM, artifacts: dict[str, Path], adapters: list[Path]
) -> None:
    other = LlamaForCausalLM.from_pretrained(artifacts["plain"], weights_memory="map")
    base = first_tokens(model)
    assert first_tokens(other) == base
    other.load_adapter(adapters[1], "one")
    model.set_adapter("one")
    assert first_tokens(other) != first_tokens(model) != base
    assert first_tokens(other) == first_tokens(model, adapter_names=["two"] * 3)
    del other
    assert first_tokens(model, adapter_names=["one"] * 3) == first_tokens(model)


def test_models_with_adapters_run_in_threads(
    model: LlamaForCausalLM, artifacts: dict[str, Path], adapters: list[Path]
) -> None:
    """One loads and deletes adapters while the other runs."""
    other = LlamaForCausalLM.from_pretrained(artifacts["plain"], threads=2)
    names = ["one", "two", BASE]
    expected = first_tokens(model, adapter_names=names)
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(first_tokens, model, adapter_names=names) for _ in range(20)]
        for _ in range(20):
            other.load_adapter(adapters[1])
            assert first_tokens(other)[0] == first_tokens(model, adapter_names=["two"] * 3)[0]
            other.delete_adapter("default")
        assert all(run.result() == expected for run in runs)


def test_a_session_belongs_to_its_adapter(
    model: LlamaForCausalLM, artifacts: dict[str, Path], adapters: list[Path], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW}
    session = model.session()
    begun = session.generate(PROMPTS[0].tolist(), adapter_names=["two"], **settings).tolist()
    session.save(tmp_path / "two.session")
    whole = np.array([[*PROMPTS[0].tolist(), *begun, 7]])
    expected = first_tokens(model, whole, adapter_names=["two"])[0]

    other = LlamaForCausalLM.from_pretrained(artifacts["plain"])
    loaded = other.session()
    with pytest.raises(UserError, match=r"is not loaded with this scale\. Load it first"):
        loaded.load(tmp_path / "two.session")
    other.load_adapter(adapters[1], "half", scale=0.5)
    with pytest.raises(UserError, match="is not loaded"):
        loaded.load(tmp_path / "two.session")
    other.load_adapter(adapters[1], "whole")
    loaded.load(tmp_path / "two.session")
    pieces = list(loaded.stream([7], adapter_names=["whole"], **settings))
    assert [piece.id for piece in pieces] == expected
    assert pieces[-1].timings is not None and pieces[-1].timings.cached_tokens == whole.shape[1] - 1
    loaded.save(tmp_path / "again.session")
    other.delete_adapter("whole")
    with pytest.raises(UserError, match="was deleted"):
        loaded.save(tmp_path / "again.session")


def test_a_deleted_adapter_fails_its_generation_only(model: LlamaForCausalLM) -> None:
    stream = model.stream(PROMPTS[0], adapter_names=["two"], max_new_tokens=NEW, do_sample=False)
    base = first_tokens(model)
    model.delete_adapter("two")
    with pytest.raises(UserError, match="was deleted"):
        next(stream)
    assert first_tokens(model) == base


def test_wrong_names_and_counts(model: LlamaForCausalLM, adapters: list[Path]) -> None:
    for call, problem in (
        (lambda: model.set_adapter("three"), r"no adapter 'three' \('one', 'two'\)"),
        (lambda: model.set_adapter(["one", "two"]), "merge several at export: LORA=one,two"),
        (lambda: model.delete_adapter("three"), "no adapter 'three'"),
        (lambda: model.load_adapter(adapters[0], "one"), "there is an adapter 'one' already"),
        (lambda: model.load_adapter(adapters[0], BASE), "needed: a text other than"),
        (lambda: model.load_adapter(adapters[0], "none", scale=0), "scale of the adapter 'none' is 0"),
        (lambda: model.load_adapter(adapters[0].parent / "absent"), "is no folder"),
        (lambda: model.generate(PROMPTS, adapter_names=["one"]), r"a name for each prompt \(3\)"),
        (lambda: model.generate(PROMPTS, adapter_names="one"), r"a name for each prompt \(3\)"),
        (lambda: model.stream(PROMPTS[0], adapter_names=["three"]), "no adapter 'three'"),
    ):
        with pytest.raises(UserError, match=problem):
            call()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"use_dora": True}, "it has use_dora"),
        ({"modules_to_save": ["lm_head"]}, "it has modules_to_save"),
        ({"bias": "all"}, "it has bias"),
        ({"trainable_token_indices": [3]}, "it has trainable_token_indices"),
        ({"target_modules": ["lm_head", "q_proj"]}, "it adapts lm_head"),
        ({"target_modules": ["embed_tokens"]}, "it adapts model.embed_tokens"),
        ({"lora_bias": True}, r"it has a bias for model\.layers\.0\.\S+ \(lora_bias\)"),
    ],
)
def test_what_cannot_apply_at_run_time_is_refused_by_name(
    settings: dict[str, Any],
    problem: str,
    artifacts: dict[str, Path],
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = tiny_checkpoint(**CONFIGS["head-size-20"])
    folder = make_adapter(base, tmp_path / "a", **settings)
    model = LlamaForCausalLM.from_pretrained(artifacts["head-size-20"])
    with pytest.raises(UserError, match=problem) as raised:
        model.load_adapter(folder)
    assert f"`make export MODEL={base} LORA={folder}`" in str(raised.value)


def test_an_adapter_of_another_model_is_refused(artifacts: dict[str, Path], adapters: list[Path]) -> None:
    model = LlamaForCausalLM.from_pretrained(artifacts["gemma3"])
    with pytest.raises(UserError, match="does not fit"):
        model.load_adapter(adapters[0])
    assert not model.engine.adapters.loaded


def test_other_targets_refuse_adapters(tiny_artifact: Path, adapters: list[Path]) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_artifact)
    with pytest.raises(UserError, match=r"only the cpu target takes adapters at run time\. Merge .* LORA="):
        model.load_adapter(adapters[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_b_changes_as_the_export_changes_the_weights(name: str) -> None:
    """The factor of o_proj and down_proj, and the order of the rows of q and k, are those of FoldedCheckpoint."""
    from edgellama.exporter.checkpoint.folded import head_order, weight_multiplier
    from edgellama.exporter.network.config import LlamaConfig
    from support.checkpoints import DEFAULTS

    hf = {"model_type": "llama", **DEFAULTS, **CONFIGS[name]}
    config = LlamaConfig.from_dict(hf)
    values = json.loads(json.dumps({key: value for key, value in config.to_dict().items() if value is not None}))
    for part, wanted in (("self_attn.o_proj", "after_attention"), ("mlp.down_proj", "after_mlp")):
        norms = backend.architecture_of(values).norms
        factor = 1.0 if getattr(norms, wanted) else backend._added_factor(values)
        assert factor == pytest.approx(weight_multiplier(config, f"model.layers.0.{part}.weight"))

    class Sizes:
        width = config.head_dim

    order = backend._order(Sizes(), values)  # type: ignore[arg-type]
    np.testing.assert_array_equal(order is None, head_order(config) is None)
    if order is not None:
        np.testing.assert_array_equal(order, head_order(config))
