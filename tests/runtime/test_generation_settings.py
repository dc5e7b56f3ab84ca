"""The effect of sampling and the other settings on generate() and stream(), over the toy of tiny.py."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.errors import UserError
from edgellama.generation.config import GenerationConfig
from edgellama.generation.output import GenerateOutput
from edgellama.generation.stored_settings import artifact_settings
from edgellama.model import LlamaForCausalLM
from support.distributions import chi_square, softmax
from support.tiny import VOCAB, Weights, artifact, whole_text_logits
from support.toy_model import PROMPTS, continuation, load, padded


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return load(tmp_path_factory.mktemp("toy"), batch=3, eos_token_id=())


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return load(tmp_path_factory.mktemp("toy"), eos_token_id=())


SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 4.0, "max_new_tokens": 10}


def test_the_same_seed_gives_the_same_tokens_and_another_one_others(model: LlamaForCausalLM) -> None:
    draws = [model.generate([5, 6], **SAMPLED, seed=seed).tolist() for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2] and draws[2] != draws[3]
    unseeded = [model.generate([5, 6], **SAMPLED).tolist() for _ in range(3)]
    assert unseeded[0] != unseeded[1] or unseeded[1] != unseeded[2]


def test_a_generation_config_keeps_given_values_and_takes_the_rest_from_the_artifact() -> None:
    stored = GenerationConfig(do_sample=True, temperature=5.0, eos_token_id=3, max_new_tokens=9)
    assert GenerationConfig(top_k=4).completed(stored) == dataclasses.replace(stored, top_k=4)
    assert GenerationConfig(do_sample=False).completed(stored) == dataclasses.replace(stored, do_sample=False)
    assert GenerationConfig(pad_token_id=None).completed(stored) == stored
    assert GenerationConfig(max_length=7).completed(stored).max_new_tokens is None
    assert GenerationConfig(max_new_tokens=None, max_length=7).completed(stored).max_length == 7
    whole = dataclasses.replace(stored, top_k=4)  # every field is given
    assert whole.completed(GenerationConfig(top_p=0.5)) == whole


def test_generation_config_jsons_special_tokens_count(tmp_path: Path) -> None:
    model = load(tmp_path, eos_token_id=(2,))
    path = model.artifact.file("generation_config.json")
    for stored, eos, pad in (({"eos_token_id": [30, 31], "pad_token_id": 4}, (30, 31), 4), ({}, (2,), None)):
        path.write_text(json.dumps(stored))
        config = artifact_settings(model.artifact)
        assert (config.eos_token_id, config.pad_token_id) == (eos, pad or model.artifact.manifest.pad_token_id)


def test_a_temperature_of_zero_means_greedy(model: LlamaForCausalLM) -> None:
    with pytest.warns(UserWarning, match="temperature: without effect"):
        got = model.generate([5, 6], max_new_tokens=4, do_sample=False, temperature=0.0)
    assert got[0, 2:].tolist() == continuation([5, 6], 4)
    assert GenerationConfig(temperature=0.0).temperature == 0
    with pytest.raises(UserError, match="holds inf, and a draw needs finite"):
        model.generate([5, 6], do_sample=True, sequence_bias={(5,): float("inf")})


def test_a_row_draws_alike_whatever_runs_beside_it(model: LlamaForCausalLM, single: LlamaForCausalLM) -> None:
    ids, mask = padded(PROMPTS, "left", 0)
    together = model.generate(ids, mask, **SAMPLED, seed=7)  # two batches of three rows
    batches_of_one = single.generate(ids, mask, **SAMPLED, seed=7)
    np.testing.assert_array_equal(together, batches_of_one)
    ended = model.generate(ids, mask, **SAMPLED, seed=7, eos_token_id=int(together[0, ids.shape[1]]), pad_token_id=0)
    assert ended[1, ids.shape[1]] == together[1, ids.shape[1]]


def test_first_tokens_follow_the_models_distribution(model: LlamaForCausalLM) -> None:
    got = model.generate(
        [[5, 6]], do_sample=True, temperature=5.0, top_k=0, max_new_tokens=1, num_return_sequences=3000, seed=0
    )
    assert got.shape == (3000, 3)
    logits = whole_text_logits(Weights(64), [5, 6])[-1]
    counts = np.bincount(got[:, 2], minlength=VOCAB)
    assert chi_square(counts, softmax(logits / 5.0)) < 4
    assert chi_square(counts, softmax(logits / 4.0)) > 4


def test_top_k_of_one_is_greedy(model: LlamaForCausalLM) -> None:
    assert model.generate([5, 6], do_sample=True, top_k=1, max_new_tokens=9)[0, 2:].tolist() == continuation([5, 6], 9)


def test_num_return_sequences_answers_prompt_by_prompt(model: LlamaForCausalLM) -> None:
    ids, mask = padded(PROMPTS[:2], "left", 0)
    got = model.generate(ids, mask, **SAMPLED, num_return_sequences=4, seed=6)
    np.testing.assert_array_equal(got[:, : ids.shape[1]], np.repeat(ids, 4, axis=0))
    assert len({tuple(row) for row in got.tolist()}) == 8


def test_defaults_are_the_artifacts_and_a_call_goes_first(tmp_path: Path) -> None:
    artifact(tmp_path)
    stored = {"do_sample": True, "temperature": 4.0, "top_p": 0.99, "top_k": None, "bos_token_id": 1, "num_beams": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(tmp_path, eos_token_id=())
        assert model.generation_config == GenerationConfig(do_sample=True, temperature=4.0, top_p=0.99)
        sampled = [model.generate([5, 6], seed=seed).tolist() for seed in (1, 2)]
        assert sampled[0] != sampled[1]
        assert model.generate([5, 6], do_sample=False)[0, 2:].tolist() == continuation([5, 6], 20)
    (tmp_path / "generation_config.json").write_text(json.dumps({"guidance_scale": 2.5}))
    with pytest.warns(UserWarning, match="guidance_scale: not known"):
        load(tmp_path)


def test_published_values_that_transformers_loads_load_here(tmp_path: Path) -> None:
    """What no token can be drawn with is replaced, and the user is told. Then a call works."""
    artifact(tmp_path)
    path = tmp_path / "generation_config.json"
    greedy, told = GenerationConfig(), pytest.warns
    for stored, expected, message in (
        ({"do_sample": True, "temperature": 0.0}, greedy, "temperature is 0 with do_sample. The likeliest"),
        ({"do_sample": True, "temperature": 0, "top_p": 0.0}, greedy, "temperature is 0 with do_sample. The likeliest"),
        ({"do_sample": True, "top_p": 0.0}, greedy, "top_p is 0 with do_sample. The likeliest"),
        ({"do_sample": False, "temperature": 0.0, "top_p": 0}, greedy, None),
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, GenerationConfig(temperature=0.9, top_p=0.6), None),
        ({"top_k": -1}, GenerationConfig(top_k=0), None),
        ({"top_k": 40.0, "max_new_tokens": 7.0}, GenerationConfig(top_k=40, max_new_tokens=7), None),
        ({"temperature": "0.7", "do_sample": "true"}, GenerationConfig(temperature=0.7, do_sample=True), None),
        ({"do_sample": 1, "top_k": "20"}, GenerationConfig(do_sample=True, top_k=20), None),
        ({name: None for name in ("top_k", "top_p", "temperature", "eos_token_id", "typical_p")}, greedy, None),
        ({"pad_token_id": -1, "eos_token_id": -1, "bos_token_id": [1]}, greedy, None),
        ({"eos_token_id": [7, 9, 7, None]}, GenerationConfig(eos_token_id=(7, 9)), None),
        ({"max_length": 4096}, GenerationConfig(max_length=4096), None),
        ({"max_new_tokens": 0}, greedy, "max_new_tokens is 0; needed: .*default .None. is used"),
        ({"repetition_penalty": 0}, greedy, "repetition_penalty is 0; .*default .1.0. is used"),
        ({"top_p": 7, "temperature": -1}, greedy, "top_p is 7; needed"),
        ({"num_return_sequences": 3}, greedy, "num_return_sequences is 3.*One answer is returned"),
        ({"stop_strings": "", "bad_words_ids": [[]], "early_stopping": "x"}, greedy, "stop_strings is ''"),
        ({"chat_format": "chatml", "user_token_id": 195, "trust_remote_code": True}, greedy, "chat_format, user_token"),
    ):
        path.write_text(json.dumps(stored))
        with warnings.catch_warnings() if message is None else told(UserWarning, match=message):
            if message is None:
                warnings.simplefilter("error")
            model = load(tmp_path, eos_token_id=())
        assert model.generation_config == expected, stored
        assert model.generate([5, 6], do_sample=False, max_new_tokens=4)[0, 2:].tolist() == continuation([5, 6], 4)
        if expected is greedy:
            assert model.generate([5, 6], max_new_tokens=4)[0, 2:].tolist() == continuation([5, 6], 4)


def test_token_type_ids_of_a_tokenizer_are_accepted(model: LlamaForCausalLM) -> None:
    """AutoTokenizer of transformers 4 gives them for many checkpoints, and examples pass all that it gives."""
    given = {"input_ids": [[5, 6]], "attention_mask": [[1, 1]], "token_type_ids": [[0, 0]]}
    assert model.generate(**given, max_new_tokens=4)[0, 2:].tolist() == continuation([5, 6], 4)


def test_a_sampling_setting_without_sampling_gives_a_warning(model: LlamaForCausalLM) -> None:
    with pytest.warns(UserWarning, match="temperature, top_p: without effect, since do_sample is False"):
        model.generate([5], temperature=0.5, top_p=0.9, max_new_tokens=1)


def test_min_new_tokens_holds_eos_back(single: LlamaForCausalLM) -> None:
    first = continuation([5, 6], 1)[0]
    got = single.generate([5, 6], max_new_tokens=6, min_new_tokens=3, eos_token_id=first)[0, 2:].tolist()
    assert first not in got[:3] and len(got) > 3


def test_stop_strings_end_a_row_where_its_text_holds_one(model: LlamaForCausalLM) -> None:
    free = [continuation(prompt, 8) for prompt in PROMPTS[:3]]
    wanted = f"{free[0][1]}w{free[0][2]}"  # it begins inside the text of one token and ends with the next
    ids, mask = padded(PROMPTS[:3], "left", 0)
    out = model.generate(
        ids, mask, max_new_tokens=8, stop_strings=["no such", wanted], pad_token_id=0, return_dict_in_generate=True
    )
    assert isinstance(out, GenerateOutput)
    assert out.finish_reasons == ("stop_string", "length", "length")
    assert out.sequences[0, ids.shape[1] :].tolist() == free[0][:3] + [0] * 5
    assert out.sequences[1:, ids.shape[1] :].tolist() == free[1:]
    *_, last = model.stream(PROMPTS[0], max_new_tokens=8, stop_strings=wanted)
    assert (last.id, last.finish_reason) == (free[0][2], "stop_string")


def test_a_dictionary_holds_scores_logits_and_logprobs_across_batches(model: LlamaForCausalLM) -> None:
    ids, mask = padded(PROMPTS, "left", 0)
    free = [continuation(prompt, 4) for prompt in PROMPTS]
    eos = free[4][0]
    out = model.generate(
        ids,
        mask,
        max_new_tokens=4,
        eos_token_id=eos,
        repetition_penalty=1.0001,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_logprobs=True,
    )
    assert isinstance(out, GenerateOutput)
    assert out.scores is not None and out.logits is not None and out.logprobs is not None
    assert len(out.scores) == len(out.logits) == 4 and out.logprobs.shape == (5, 4)
    assert out.finish_reasons[4] == "eos" and out.finish_reasons[0] == "length"
    weights = Weights(64)
    for row, prompt in enumerate(PROMPTS):
        tokens = free[row] if eos not in free[row] else free[row][: free[row].index(eos) + 1]
        whole = whole_text_logits(weights, prompt + tokens)[len(prompt) - 1 : -1]
        for step, token in enumerate(tokens):
            np.testing.assert_allclose(out.logits[step][row], whole[step], atol=1e-4)
            np.testing.assert_allclose(out.logprobs[row, step], np.log(softmax(whole[step])[token]), atol=1e-4)
            penalised = sorted(set(prompt + tokens[:step]))
            factor = np.where(whole[step][penalised] < 0, 1.0001, 1 / 1.0001)
            np.testing.assert_allclose(out.scores[step][row][penalised], whole[step][penalised] * factor, atol=1e-4)
        assert not out.logprobs[row, len(tokens) :].any()
    plain = model.generate([5], max_new_tokens=2, return_dict_in_generate=True)
    assert plain.scores is None and plain.logits is None and plain.logprobs is None
    assert (plain.timings.prompt_tokens, plain.timings.decode_steps) == (1, 1)


def test_sampled_scores_are_those_drawn_from(single: LlamaForCausalLM) -> None:
    out = single.generate([5, 6], **SAMPLED, top_k=4, seed=1, return_dict_in_generate=True, output_scores=True)
    for scores, token in zip(out.scores, out.sequences[0, 2:], strict=True):
        assert np.isfinite(scores[0]).sum() == 4 and np.isfinite(scores[0, token])


def test_streams_carry_log_probabilities(single: LlamaForCausalLM) -> None:
    free = continuation([5, 6], 4)
    whole = whole_text_logits(Weights(64), [5, 6, *free])[1:-1]
    expected = [np.log(softmax(row)[token]) for row, token in zip(whole, free, strict=True)]
    pieces = list(single.stream([5, 6], max_new_tokens=4))
    np.testing.assert_allclose([piece.logprob for piece in pieces], expected, atol=1e-4)


def test_streams_sample_as_generate_does(single: LlamaForCausalLM) -> None:
    expected = single.generate([5, 6], **SAMPLED, seed=11)[0, 2:].tolist()
    assert [piece.id for piece in single.stream([5, 6], **SAMPLED, seed=11)] == expected
    with pytest.raises(UserError, match="num_return_sequences 2"):
        single.stream([5, 6], **SAMPLED, num_return_sequences=2)


class Recorder:
    def __init__(self) -> None:
        self.values: list[Any] = []
        self.ends = 0

    def put(self, value: np.ndarray) -> None:
        self.values.append(value.tolist())

    def end(self) -> None:
        self.ends += 1


def test_a_streamer_gets_the_prompts_then_each_steps_tokens_then_the_end(model: LlamaForCausalLM) -> None:
    recorder = Recorder()
    got = model.generate([5, 6], max_new_tokens=3, streamer=recorder)
    assert recorder.values == [[[5, 6]], *([token] for token in got[0, 2:])]
    assert recorder.ends == 1
    ids, mask = padded(PROMPTS[:3], "left", 0)
    recorder = Recorder()
    eos = continuation(PROMPTS[1], 1)[0]
    got = model.generate(ids, mask, max_new_tokens=3, streamer=recorder, eos_token_id=eos, pad_token_id=4)
    assert recorder.values == [ids.tolist(), *got[:, ids.shape[1] :].T.tolist()]
    with pytest.raises(UserError, match="4 rows take several"):
        model.generate([[5]] * 4, streamer=recorder)


def test_a_streamer_gets_the_end_when_a_pass_fails(model: LlamaForCausalLM) -> None:
    recorder = Recorder()

    def fails(input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.generate([5], streamer=recorder, logits_processor=fails)
    assert recorder.ends == 1
    assert model.generate([5], max_new_tokens=3)[0, 1:].tolist() == continuation([5], 3)


def test_transformers_text_streamer_fits(model: LlamaForCausalLM, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import PreTrainedTokenizerFast, TextStreamer

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model.tokenizer.model)
    got = model.generate([5, 6], max_new_tokens=3, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip().replace(" ", "") == "".join(f"w{i}" for i in got[0, 2:])


def test_own_processors_and_criteria_see_what_hugging_faces_would(model: LlamaForCausalLM) -> None:
    ids, mask = padded(PROMPTS[:3], "left", 0)
    eos = continuation(PROMPTS[1], 1)[0]
    seen: list[list[list[int]]] = []
    allowed = [7, 8, eos]

    def only_allowed(input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.append(input_ids.tolist())
        out = np.full_like(scores, -np.inf)
        out[:, allowed] = scores[:, allowed]
        return out

    def long_enough(input_ids: np.ndarray, scores: Any) -> bool:
        assert scores is None
        return input_ids.shape[1] >= ids.shape[1] + 3

    out = model.generate(
        ids,
        mask,
        eos_token_id=eos,
        pad_token_id=0,
        logits_processor=[only_allowed],
        stopping_criteria=long_enough,
        return_dict_in_generate=True,
    )
    new = out.sequences[:, ids.shape[1] :]
    assert new.shape[1] == 3 and np.isin(new, [*allowed, 0]).all()
    assert out.finish_reasons[1] == "eos" and "stopping_criteria" in out.finish_reasons
    assert seen == [out.sequences[:, : ids.shape[1] + step].tolist() for step in range(3)]


def test_a_criterion_may_end_single_rows(model: LlamaForCausalLM) -> None:
    out = model.generate(
        [[5], [9], [11]],
        max_new_tokens=4,
        pad_token_id=0,
        stopping_criteria=lambda ids, _: np.arange(3) < ids.shape[1] - 2,
        return_dict_in_generate=True,
    )
    assert [np.count_nonzero(row) for row in out.sequences[:, 1:]] == [2, 3, 4]


def test_invalid_callables_are_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match=r"logits_processor returned shape \(2,\); needed: \(1, 50\)"):
        model.generate([5], logits_processor=lambda ids, scores: np.zeros(2))
    with pytest.raises(UserError, match=r"stopping_criteria returned shape \(2,\); needed: one boolean, or 1"):
        model.generate([5], stopping_criteria=lambda ids, scores: [True, False])
    with pytest.raises(UserError, match="rule out every token"):
        model.generate([5], bad_words_ids=[[i] for i in range(VOCAB)])
