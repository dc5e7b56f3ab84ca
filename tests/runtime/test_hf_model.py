"""The methods and settings that scripts know from transformers, compared with transformers on the same small model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.generation import logits_process as theirs

import edgellama
from edgellama.errors import UserError
from edgellama.generation.config import GenerationConfig
from edgellama.generation.settings.others import REMEDIES, WITHOUT_EFFECT
from edgellama.hf_model import _parameters
from edgellama.mindir.network import Network
from edgellama.model import LlamaForCausalLM
from support.checkpoints import CONFIGS, DEFAULTS
from support.hf_pair import pair, pair_artifact
from support.tiny import manifest
from support.toy_model import load

TEXTS = ["Hello there, how are you?", "one two three four"]
PROMPT = torch.tensor([[72, 101, 108, 108, 111, 32, 119, 111, 114]])
PADDED = torch.tensor([[0, 0, 0, 70, 71, 72], [80, 81, 82, 83, 84, 85]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def followed(prompt: int, ids: Any) -> list[int]:
    """Allows two tokens that depend on the last one; of torch if the prompt was."""
    assert isinstance(ids, torch.Tensor) and prompt in (0, 1)
    return [(int(ids[-1]) * 7 + prompt) % 200, (int(ids[-1]) * 3) % 200]


PAD = 2  # 0 would be no pad id for the beam search of transformers
EOS = [65, 66, 67, 200, 201, 202]
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "min_length": {"min_length": 12, "eos_token_id": EOS},
    "suppress_tokens": {"suppress_tokens": list(range(0, 250, 2))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(60, 240))},
    "forced_eos_token_id": {"forced_eos_token_id": 3},
    "decay": {"exponential_decay_length_penalty": (2, 1.6), "eos_token_id": EOS},
    "encoder penalty": {"encoder_repetition_penalty": 2.5, "input_ids": PROMPT},
    "encoder ngrams": {"encoder_no_repeat_ngram_size": 1, "input_ids": torch.arange(40, 250)[None]},
    "encoder bigrams": {"encoder_no_repeat_ngram_size": 2, "input_ids": torch.tensor([[70, 70, 80, 70, 80] * 9])},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": followed},
    "prefix and ban": {"prefix_allowed_tokens_fn": followed, "bad_words_ids": [[i] for i in range(0, 200, 2)]},
    "remove_invalid_values": {"remove_invalid_values": True, "bad_words_ids": [[70]]},
    "beams": {"num_beams": 2, "prefix_allowed_tokens_fn": followed},
    "normalized beams": {"num_beams": 2, "renormalize_logits": True, "repetition_penalty": 1.4},
    "all": {
        **{"suppress_tokens": list(range(0, 100, 2)), "begin_suppress_tokens": [71, 73], "forced_eos_token_id": 3},
        **{"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
        "input_ids": PROMPT,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_give_the_tokens_and_scores_of_transformers(name: str) -> None:
    ours, reference = pair()
    settings = {"max_new_tokens": 10, "pad_token_id": PAD, "output_scores": True, "return_dict_in_generate": True}
    call = {"input_ids": PADDED, **settings, **SETTINGS[name]}
    prompt = call["input_ids"]
    call["attention_mask"] = mask = MASK if prompt is PADDED else torch.ones_like(prompt)
    plain = reference.generate(prompt, attention_mask=mask, max_new_tokens=10, pad_token_id=PAD).tolist()
    found, expected = ours.generate(**call), reference.generate(**call)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert (
        name in ("greedy", "remove_invalid_values", "encoder bigrams", "normalized beams")
        or found.sequences.tolist() != plain
    )
    assert isinstance(found.scores[0], torch.Tensor)
    for step, scores in enumerate(expected.scores):
        live = [row for row in range(len(scores)) if found.scores[step][row].any()]
        torch.testing.assert_close(found.scores[step][live], scores[live], atol=2e-4, rtol=1e-4)
    transitions = [
        model.compute_transition_scores(out.sequences, out.scores, getattr(out, "beam_indices", None), normalized)
        for normalized in (False, True)
        for model, out in ((ours, found), (reference, expected))
    ]
    ended = found.sequences[:, prompt.shape[1] :] == PAD
    for mine, its in (transitions[:2], transitions[2:]):
        if mine.shape == ended.shape:  # after the end of a row our scores are zeros
            its = its.masked_fill(ended, 0)
            mine = mine.masked_fill(ended, 0)
        torch.testing.assert_close(mine, its, atol=2e-4, rtol=1e-4)


def test_logits_and_loss_of_every_position() -> None:
    ours, reference = pair()
    for ids, mask in ((PROMPT, None), (PADDED, MASK), (torch.cat([PADDED] * 4), torch.cat([MASK] * 4))):
        labels = ids.clone()
        labels[:, 1] = -100
        found = ours(ids, attention_mask=mask, labels=labels, use_cache=False)
        expected = reference(ids, attention_mask=mask, labels=labels)
        kept = torch.ones_like(ids).bool() if mask is None else mask.bool()
        torch.testing.assert_close(found.logits[kept], expected.logits[kept].detach(), atol=1e-4, rtol=1e-4)
        if mask is None:
            torch.testing.assert_close(found.loss, expected.loss.detach(), atol=1e-4, rtol=1e-4)
        assert found["logits"] is found.logits and found[1] is found.logits and found[0] is found.loss
    last = ours(PROMPT.numpy(), logits_to_keep=1)
    assert isinstance(last.logits, np.ndarray) and last.logits.shape == (1, 1, ours.engine.vocab_size)
    assert last.loss is None and last[0] is last.logits
    with pytest.raises(UserError, match=r"past_key_values does not work here.*session\(\)"):
        ours(PROMPT, past_key_values=object())
    with pytest.raises(UserError, match=r"labels has shape \(1, 2\)"):
        ours(PROMPT, labels=[[1, 2]])
    with pytest.raises(TypeError, match="no keyword 'labls'"):
        ours(PROMPT, labls=PROMPT)


def test_a_target_without_every_position_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"last token only.*TARGET=cpu"):
        load(tmp_path)([[5, 6]])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_number_of_parameters_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    """Every architecture, from its config alone."""
    settings = {"model_type": "llama", **DEFAULTS, **CONFIGS[name]}
    if settings["model_type"] == "internlm3":
        settings["model_type"] = "llama"  # which transformers does not have; its layers are Llama's
    config = transformers.AutoConfig.for_model(**settings)
    with torch.device("meta"):
        expected = transformers.AutoModelForCausalLM.from_config(config)
    values = {"head_dim": 16, **config.to_dict()}
    values["head_dim"] = values["head_dim"] or config.hidden_size // config.num_attention_heads
    assert _parameters(Network.of(manifest(tmp_path, config=values))) == expected.num_parameters()


def test_small_methods() -> None:
    ours, reference = pair()
    assert ours.eval() is ours.train(False) is ours.cpu() is ours.to("cpu") is ours.to(torch.device("cpu")) is ours
    assert ours.to(torch.float32) is ours and ours.to(dtype=torch.float32, device="cpu") is ours
    assert ours.can_generate() and ours.dtype == "fp32" and ours.name_or_path == str(pair_artifact())
    for left in ({}, {"exclude_embeddings": True}):
        assert ours.num_parameters(**left) == reference.num_parameters(**left)
    assert ours.num_parameters(only_trainable=True) == 0
    assert str(pair_artifact()) in repr(ours) and "cpu fp32, context 320, batch 5" in repr(ours)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: ours.to("cuda"), "device is 'cuda'.*Leave it out"),
        (lambda: ours.to(torch.float16), "dtype is torch.float16.*WEIGHTS=fp16"),
        (lambda: ours.train(), "cannot be trained.*load_adapter"),
        (lambda: ours.compute_transition_scores(PROMPT, ()), "output_scores=True"),
    ]
    for call, message in calls:
        with pytest.raises(UserError, match=message):
            call()


def test_the_generation_config_can_be_assigned() -> None:
    ours, _ = pair()
    kept = ours.generation_config
    try:
        ours.generation_config = transformers.GenerationConfig(max_new_tokens=3, eos_token_id=9)
        assert ours.generate(PROMPT).shape == (1, PROMPT.shape[1] + 3)
        ours.generation_config.max_new_tokens = 5
        ours.generation_config.suppress_tokens = [1, 2]
        assert ours.generate(PROMPT).shape == (1, PROMPT.shape[1] + 5)
        assert ours.generation_config.to_dict() == {
            **{"eos_token_id": (9,), "max_new_tokens": 5, "suppress_tokens": (1, 2)}
        }
        ours.generation_config.max_new_tokens = None
        assert "max_new_tokens" not in ours.generation_config.given
        ours.generation_config.cache_implementation = "static"  # changes nothing here
        with pytest.raises(UserError, match="top_k is -1; needed"):
            ours.generation_config.top_k = -1
        with pytest.raises(TypeError, match="no keyword 'max_tokens'; the nearest is 'max_new_tokens'"):
            ours.generation_config.max_tokens = 3
        with pytest.raises(UserError, match="generation_config is a int"):
            ours.generation_config = 3
        ours.generation_config = {"max_new_tokens": 2}
        assert ours.generate(PROMPT, generation_config=transformers.GenerationConfig(max_new_tokens=4)).shape[1] == 13
        with pytest.raises(UserError, match=r"guidance_scale is 1\.5; it does not work here"):
            ours.generate(PROMPT, generation_config=transformers.GenerationConfig(guidance_scale=1.5))
    finally:
        ours.generation_config = kept


def test_callables_get_tensors_for_a_tensor_and_arrays_for_an_array() -> None:
    ours, reference = pair()
    seen: list[type] = []

    def processor(input_ids: Any, scores: Any) -> Any:
        seen.extend([type(input_ids), type(scores)])
        scores[:, 70:] = -1e9
        return scores

    class Kept:
        def put(self, value: Any) -> None:
            seen.append(type(value))

        def end(self) -> None:
            pass

    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    for prompt, kind in ((PROMPT, torch.Tensor), (PROMPT.numpy(), np.ndarray), (PROMPT.tolist(), np.ndarray)):
        seen.clear()
        found = ours.generate(prompt, logits_processor=[processor], streamer=Kept(), **settings)
        assert set(seen) == {kind} and type(found) is kind
    expected = reference.generate(PROMPT, logits_processor=[processor], **settings)
    assert ours.generate(PROMPT, logits_processor=[processor], **settings).tolist() == expected.tolist()
    their = theirs.LogitsProcessorList([theirs.SuppressTokensLogitsProcessor(list(range(0, 200)))])
    stop = transformers.StoppingCriteriaList([transformers.MaxLengthCriteria(11)])
    call: dict[str, Any] = {"logits_processor": their, "stopping_criteria": stop, **settings}
    assert ours.generate(PROMPT, **call).tolist() == reference.generate(PROMPT, **call).tolist()


@pytest.mark.parametrize("name", REMEDIES)
def test_a_setting_that_does_not_work_says_what_does(name: str) -> None:
    ours, _ = pair()
    with pytest.raises(UserError, match=f"{name} is .*; it does not work here. {REMEDIES[name][:20]}"):
        ours.generate(PROMPT, **{name: "something"})
    ours.generate(PROMPT, max_new_tokens=1, **{name: None})


def test_every_setting_of_transformers_is_known() -> None:
    """Each one works, changes nothing here, or has a remedy: none is called unknown."""
    notes = {"_from_model_config", "transformers_version"}
    names = set(transformers.GenerationConfig().to_dict()) - notes
    assert len(names) > 50
    settings = set(GenerationConfig().__dataclass_fields__)
    assert names - settings - WITHOUT_EFFECT - set(REMEDIES) == set()


def test_max_time_ends_a_generation(tmp_path: Path) -> None:
    model = load(tmp_path, batch=2, eos_token_id=())

    def slow(input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return scores

    for settings in ({}, {"num_beams": 2}):
        out = model.generate(
            *([[5, 6]],),
            **{"max_new_tokens": 40, "max_time": 0.12, "logits_processor": slow, "return_dict_in_generate": True},
            **settings,
        )
        assert out.new_tokens[0] < 20 and out.finish_reasons == ("stopping_criteria",)


def test_set_seed_makes_calls_repeatable(tmp_path: Path) -> None:
    model = load(tmp_path, eos_token_id=())
    sampled: dict[str, Any] = {"do_sample": True, "temperature": 4.0, "max_new_tokens": 10}
    runs = []
    for seed in (3, 3, 4):
        edgellama.set_seed(seed)
        runs.append([model.generate([5, 6], **sampled).tolist() for _ in range(2)] + [np.random.rand()])
    assert runs[0] == runs[1] != runs[2] and runs[0][0] != runs[0][1]
    with pytest.raises(UserError, match="seed is -1; needed"):
        edgellama.set_seed(-1)


def test_save_pretrained_writes_an_artifact(tmp_path: Path) -> None:
    ours, _ = pair()
    kept = ours.generation_config
    try:
        ours.generation_config = {**kept.to_dict(), "max_new_tokens": 6}
        ours.save_pretrained(tmp_path / "copy")
    finally:
        ours.generation_config = kept
    with LlamaForCausalLM.from_pretrained(tmp_path / "copy") as copy:
        expected = ours.generate(PROMPT, max_new_tokens=6).tolist()
        assert copy.generate(PROMPT).tolist() == expected
    with pytest.raises(UserError, match="copy exists already"):
        ours.save_pretrained(tmp_path / "copy")


def test_a_closed_model_refuses_and_frees_its_memory(tmp_path: Path) -> None:
    model = load(tmp_path, eos_token_id=())
    stream = model.stream([5, 6])
    next(stream)
    stream.close()
    with model as same:
        assert same is model
    model.close()
    assert model.engine.cache.nbytes == 0
    for call in (lambda: model.generate([5]), lambda: next(model.stream([5])), model.forget):
        with pytest.raises(UserError, match=r"the model is closed\. Load it again"):
            call()


def test_the_tokenizer_has_the_names_of_transformers() -> None:
    ours, _ = pair()
    their = transformers.AutoTokenizer.from_pretrained(pair_artifact())
    messages = [{"role": "user", "content": "Hi"}]
    ids = their(TEXTS)["input_ids"]
    assert ours.tokenizer.batch_decode(ids) == their.batch_decode(ids, skip_special_tokens=True)
    for options in ({}, {"add_generation_prompt": True}, {"tokenize": False}, {"return_dict": False}):
        expected = their.apply_chat_template(messages, **options)
        expected = dict(expected) if hasattr(expected, "keys") else expected
        assert ours.tokenizer.apply_chat_template(messages, **options) == expected
    tensors = ours.tokenizer.apply_chat_template(messages, return_tensors="pt", add_generation_prompt=True)
    assert ours.generate(**tensors, max_new_tokens=2).shape == (1, tensors["input_ids"].shape[1] + 2)
    with pytest.raises(UserError, match="return_tensors is 'tf'"):
        ours.tokenizer.apply_chat_template(messages, return_tensors="tf")
