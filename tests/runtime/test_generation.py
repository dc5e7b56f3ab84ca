"""generate() and stream() over the toy of tiny.py follow each convention of Hugging Face's generate."""

from __future__ import annotations

import gc
import json
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.errors import UserError
from edgellama.generation.config import GenerationConfig
from edgellama.generation.decode import GenerationTimings, decode
from edgellama.generation.sequences import Sequences
from edgellama.hf_keywords import check_placement
from edgellama.model import LlamaForCausalLM
from support.tiny import VOCAB, artifact
from support.toy_model import PROMPTS, continuation, load, padded


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return load(tmp_path_factory.mktemp("toy"), batch=3, eos_token_id=())


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return load(tmp_path_factory.mktemp("toy"), eos_token_id=())


def test_one_prompt_as_array_list_or_row(single: LlamaForCausalLM) -> None:
    expected = [[5, 6, 7, *continuation([5, 6, 7], 9)]]
    for given in (np.array([[5, 6, 7]], np.int32), [[5, 6, 7]], [5, 6, 7]):
        got = single.generate(given, max_new_tokens=9, do_sample=False, use_cache=True)
        assert got.dtype == np.int64
        assert got.tolist() == expected


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_padded_batch_equals_one_by_one_also_in_several_batches(tmp_path: Path, side: str, batch: int) -> None:
    model = load(tmp_path, batch=batch, eos_token_id=())
    ids, mask = padded(PROMPTS, side, 0)
    got = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12)
    np.testing.assert_array_equal(got[:, : ids.shape[1]], ids)
    assert got[:, ids.shape[1] :].tolist() == [continuation(prompt, 12) for prompt in PROMPTS]


def test_masked_tokens_inside_a_row_are_as_if_absent(single: LlamaForCausalLM) -> None:
    got = single.generate([[5, 40, 6, 7, 41]], [[1, 0, 1, 1, 0]], max_new_tokens=4)
    assert got[0, 5:].tolist() == continuation([5, 6, 7], 4)


def test_mask_is_inferred_from_a_pad_id_that_is_no_eos(model: LlamaForCausalLM) -> None:
    ids, _ = padded(PROMPTS[:3], "left", 49)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = model.generate(ids, max_new_tokens=5, pad_token_id=49)
    assert got[:, ids.shape[1] :].tolist() == [continuation(prompt, 5) for prompt in PROMPTS[:3]]


def test_a_pad_id_that_is_an_eos_counts_as_text_with_a_warning(model: LlamaForCausalLM) -> None:
    ids, _ = padded(PROMPTS[:3], "left", 49)
    with pytest.warns(UserWarning, match="cannot be inferred"):
        got = model.generate(ids, max_new_tokens=1, pad_token_id=49, eos_token_id=[48, 49])
    assert got[:, -1].tolist() == [continuation(row.tolist(), 1)[0] for row in ids]


def test_any_eos_of_the_list_ends_its_row_and_padding_follows(model: LlamaForCausalLM) -> None:
    prompts = PROMPTS[:3]
    free = [continuation(prompt, 10) for prompt in prompts]
    eos = [free[0][2], free[1][5]]
    ids, mask = padded(prompts, "left", 0)
    ends = [next((i + 1 for i, token in enumerate(row) if token in eos), 10) for row in free]
    assert len(set(ends)) > 1  # otherwise the test would show little
    width = max(ends)
    for pad, filler in ((None, eos[0]), (44, 44)):
        got = model.generate(ids, mask, max_new_tokens=10, eos_token_id=eos, pad_token_id=pad)
        expected = [row[:end] + [filler] * (width - end) for row, end in zip(free, ends, strict=True)]
        assert got[:, ids.shape[1] :].tolist() == expected


def test_one_eos_id_may_be_a_plain_int_and_an_empty_list_turns_the_default_off(tmp_path: Path) -> None:
    free = continuation([5, 6], 8)
    model = load(tmp_path, eos_token_id=(free[3],))
    end = free.index(free[3]) + 1
    assert model.generate([5, 6], max_new_tokens=8)[0, 2:].tolist() == free[:end]
    assert model.generate([5, 6], max_new_tokens=8, eos_token_id=[])[0, 2:].tolist() == free
    assert model.generate([5, 6], max_new_tokens=8, eos_token_id=free[0])[0, 2:].tolist() == free[:1]


def test_a_row_is_as_long_as_it_would_be_alone(model: LlamaForCausalLM) -> None:
    """A row that fills the context ends, and the other rows continue: in the same batch, in another, and with beams."""
    long, short = [5] * 60, [6, 7]  # of a context of 64
    alone = [model.generate([row], max_new_tokens=9)[0, len(row) :].tolist() for row in (long, short)]
    assert [len(row) for row in alone] == [4, 9]
    ids, mask = padded([long, short, short, short], "left", 0)
    out = model.generate(ids, mask, max_new_tokens=9, return_dict_in_generate=True, pad_token_id=3)
    assert out.finish_reasons == ("length",) * 4
    new = out["sequences"][:, ids.shape[1] :]
    assert new[0].tolist() == alone[0] + [3] * 5 and new[1:].tolist() == [alone[1]] * 3
    settings = {"max_new_tokens": 9, "num_beams": 2, "return_dict_in_generate": True, "output_logprobs": True}
    beams = [model.generate([row], **settings) for row in (long, short)]
    ids, mask = padded([long, short], "left", 0)
    both = model.generate(ids, mask, **settings, pad_token_id=3)
    for row, (one, count) in enumerate(zip(beams, (4, 9), strict=True)):
        np.testing.assert_array_equal(both.sequences[row, 60 : 60 + count], one.sequences[0, -count:])
        np.testing.assert_allclose(both.logprobs[row, :count], one.logprobs[0, :count], atol=1e-5)
        assert (both.beam_indices[row, count:] == -1).all()


def test_beams_that_fill_the_context_leave_those_beside_them_going_on(tmp_path: Path) -> None:
    """In one batch, the search for the long prompt ends five steps before the other one."""
    model = load(tmp_path, batch=4, eos_token_id=())
    long, short = [5] * 60, [6, 7]  # of a context of 64
    settings = {"max_new_tokens": 9, "num_beams": 2}
    alone = [model.generate([row], **settings)[0, len(row) :].tolist() for row in (long, short)]
    ids, mask = padded([long, short], "left", 0)
    both = model.generate(ids, mask, **settings, pad_token_id=3)[:, 60:].tolist()
    assert both == [alone[0] + [3] * 5, alone[1]]


def test_hugging_faces_names_for_prompt_tokenizer_and_device(model: LlamaForCausalLM) -> None:
    expected = model.generate([5, 6], max_new_tokens=3).tolist()
    assert model.generate(inputs=np.array([[5, 6]]), max_new_tokens=3, tokenizer=object()).tolist() == expected
    assert model.device == "cpu"
    out = model.generate([5, 6], max_new_tokens=3, return_dict_in_generate=True)
    assert out["sequences"].tolist() == expected
    with pytest.raises(KeyError, match="nothing"):
        out["nothing"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "cpu", "device_map": "auto", "dtype": "auto", "torch_dtype": None}, ""),
        ({"torch_dtype": "torch.float32"}, ""),
        (
            {"device": "cuda:0"},
            r"device is 'cuda:0'; the artifact was exported for target portable, weights fp32. Leave",
        ),
        ({"dtype": "float16"}, r"dtype is 'float16'; .* or export with WEIGHTS=fp16"),
    ],
)
def test_device_and_dtype_are_fixed_at_export(given: dict[str, Any], message: str, model: LlamaForCausalLM) -> None:
    if not message:
        return check_placement("from_pretrained", given, model.artifact.manifest)
    with pytest.raises(UserError, match=message):
        check_placement("from_pretrained", given, model.artifact.manifest)


def test_an_unknown_way_of_loading_is_refused(tmp_path: Path) -> None:
    load(tmp_path)
    with pytest.raises(TypeError, match="unexpected keyword argument 'low_memory'"):
        LlamaForCausalLM.from_pretrained(tmp_path, low_memory=True)


def test_a_generation_config_replaces_the_artifacts_own(tmp_path: Path) -> None:
    free = continuation([5, 6], 20)
    model = load(tmp_path, eos_token_id=(free[9],))
    config = GenerationConfig(max_new_tokens=6)
    assert model.generate([5, 6], generation_config=config)[0, 2:].tolist() == free[:6]
    assert model.generate([5, 6], generation_config=config, max_new_tokens=3)[0, 2:].tolist() == free[:3]
    assert [piece.id for piece in model.stream([5, 6], generation_config=config)] == free[:6]
    long = GenerationConfig(max_new_tokens=15)  # eos ids that it does not set come from the artifact
    assert model.generate([5, 6], generation_config=long)[0, 2:].tolist() == free[: free.index(free[9]) + 1]


def test_lengths(single: LlamaForCausalLM) -> None:
    assert single.generate([5, 6]).shape == (1, 2 + 20)  # Hugging Face's default
    assert single.generate([5, 6], max_length=9).shape == (1, 9)
    assert single.generate([5] * 60, max_new_tokens=100).shape == (1, 64)  # the context is full
    with pytest.warns(UserWarning, match="max_new_tokens counts"):
        assert single.generate([5, 6], max_new_tokens=3, max_length=9).shape == (1, 5)


def test_lengths_of_the_artifacts_own_generation_config(tmp_path: Path) -> None:
    artifact(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_length": 11, "temperature": 0.6}))
    model = load(tmp_path, eos_token_id=())
    assert model.generate([5, 6]).shape == (1, 11)
    assert model.generate([5, 6], max_new_tokens=2).shape == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": [5] * 64}, r"64 tokens; this artifact holds 64 \(context\).*MODEL=toy CONTEXT=128"),
        ({"input_ids": [5] * 200}, r"CONTEXT=256"),
        ({"input_ids": [5] * 300}, r"The model was made for 256: shorten the prompt"),
        ({"input_ids": []}, r"the prompt is empty \(input_ids has shape \(1, 0\)\)"),
        ({"input_ids": "hello"}, r"input_ids is text; needed: token ids"),
        ({"input_ids": None}, r"needed: one of input_ids and inputs"),
        ({"input_ids": [5], "inputs": [5]}, r"needed: one of input_ids and inputs"),
        ({"input_ids": 5}, r"input_ids has shape \(\)"),
        ({"input_ids": {"input_ids": [[5]]}}, r"input_ids is a dict; .*Unpack it: generate\(\*\*inputs\)"),
        ({"input_ids": [5], "eos_token_id": [[1], [2, 3]]}, r"eos_token_id is .*; needed: a token id or a list"),
        ({"input_ids": [5], "top_k": 10**30}, r"top_k is 10+; needed: a whole number"),
        ({"input_ids": [5], "repetition_penalty": 10**400}, r"repetition_penalty is 10+.*; needed: a number"),
        ({"input_ids": [5], "stop_strings": 3}, r"stop_strings is 3; needed: a string or a list"),
        ({"input_ids": [5], "generation_config": 3}, r"generation_config is a int; needed: a GenerationConfig of"),
        ({"input_ids": [[[5]]]}, r"shape \(1, 1, 1\)"),
        ({"input_ids": [[5, 6], [7]]}, r"rows of 1 to 2 tokens.*padding=True"),
        ({"input_ids": [[5.0]]}, r"type float64"),
        ({"input_ids": [[VOCAB]]}, r"id 50; this artifact's ids are 0\.\.49"),
        ({"input_ids": [[-1]]}, r"id -1"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1]]}, r"attention_mask has shape \(1, 1\); needed: \(1, 2\)"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1, 2]]}, r"other values than 0 and 1"),
        ({"input_ids": [[5, 6]], "attention_mask": [[0, 0]]}, r"prompt 0 is empty"),
        ({"input_ids": [[5, 6]], "max_new_tokens": 0}, r"max_new_tokens is 0"),
        ({"input_ids": [[5, 6]], "max_new_tokens": 1.5}, r"max_new_tokens is 1\.5"),
        ({"input_ids": [[5, 6]], "max_length": 2}, r"max_length is 2 and the prompt has 2 tokens"),
        ({"input_ids": [[5, 6]], "eos_token_id": "x"}, r"eos_token_id is 'x'"),
        ({"input_ids": [[5, 6]], "num_return_sequences": 2}, r"num_return_sequences is 2.*Use do_sample=True"),
        ({"input_ids": [[5, 6]], "temperature": -1, "do_sample": True}, r"temperature is -1"),
        ({"input_ids": [[5, 6]], "bad_words_ids": [[VOCAB]]}, r"bad_words_ids holds id 50"),
        ({"input_ids": [[5, 6]], "logits_processor": 3}, r"logits_processor"),
        ({"input_ids": [[5, 6]], "stopping_criteria": ["x"]}, r"stopping_criteria holds 'x'; needed: a callable"),
        ({"input_ids": [[5, 6]], "use_cache": False}, r"use_cache=False"),
    ],
)
def test_bad_input_is_refused_before_the_engine_runs(
    single: LlamaForCausalLM, arguments: dict[str, Any], message: str
) -> None:
    before = single.engine.timings.run
    with pytest.raises(UserError, match=message):
        single.generate(**arguments)
    assert single.engine.timings.run == before


@pytest.mark.parametrize(
    ("keyword", "nearest"),
    [("max_new_token", "max_new_tokens"), ("eos_token", "eos_token_id"), ("sample", "do_sample")],
)
def test_an_unknown_keyword_is_a_type_error_naming_the_nearest(
    single: LlamaForCausalLM, keyword: str, nearest: str
) -> None:
    with pytest.raises(TypeError, match=f"no keyword '{keyword}'; the nearest is '{nearest}'"):
        single.generate([5], **{keyword: 1})
    with pytest.raises(TypeError, match=nearest):
        single.stream([5], **{keyword: 1})


def test_stream_yields_what_generate_returns(model: LlamaForCausalLM) -> None:
    expected = model.generate([5, 6, 7], max_new_tokens=6)[0, 3:].tolist()
    pieces = list(model.stream([5, 6, 7], max_new_tokens=6))
    assert [piece.id for piece in pieces] == expected
    assert "".join(piece.text for piece in pieces) == "".join(f"w{i}" for i in expected)
    assert [piece.finish_reason for piece in pieces] == [None] * 5 + ["length"]
    assert pieces[-1].timings is not None
    assert (pieces[-1].timings.prompt_tokens, pieces[-1].timings.decode_steps) == (3, 5)
    ended = list(model.stream([5, 6, 7], max_new_tokens=6, eos_token_id=expected[1]))
    assert (ended[-1].id, ended[-1].finish_reason) == (expected[1], "eos")


def test_an_abandoned_stream_leaves_the_model_usable(model: LlamaForCausalLM) -> None:
    stream = model.stream([5, 6, 7])
    next(stream)
    with pytest.raises(UserError, match="another stream"):
        model.generate([9], max_new_tokens=2)
    del stream
    gc.collect()
    assert model.generate([9], max_new_tokens=2)[0, 1:].tolist() == continuation([9], 2)


def test_threads_take_turns(model: LlamaForCausalLM) -> None:
    got: dict[int, list[int]] = {}

    def work(index: int) -> None:
        got[index] = model.generate([PROMPTS[index]], max_new_tokens=10)[0, len(PROMPTS[index]) :].tolist()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {i: continuation(prompt, 10) for i, prompt in enumerate(PROMPTS)}


def test_ended_rows_take_no_part_and_the_last_token_is_not_fed(single: LlamaForCausalLM) -> None:
    calls: list[tuple[list[int], list[int]]] = []

    class Recorder:
        batch = 3

        def forward(self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
            calls.append((start.tolist(), length.tolist()))
            logits = np.zeros((3, 8), np.float32)
            logits[[0, 1, 2], [3, 7 if len(calls) == 2 else 4, 5]] = 1
            return logits

    sequences = Sequences([np.array([1, 2]), np.array([1])], [4, 4])
    ends = [("seven", lambda sequences: sequences.last() == 7)]
    steps = list(decode(Recorder(), sequences, GenerationTimings(), stops=ends))
    assert sequences.finish_reasons == ["length", "seven"]
    assert sequences.left_padded(9).tolist() == [[1, 2, 3, 3, 3, 3], [9, 1, 4, 7, 9, 9]]
    assert steps == [[3, 4], [3, 7], [3, -1], [3, -1]]
    assert calls == [([0, 0, 0], [2, 1, 0]), ([2, 1, 0], [1, 1, 0]), ([3, 2, 0], [1, 0, 0]), ([4, 2, 0], [1, 0, 0])]


def test_logits_that_are_not_numbers_are_an_error() -> None:
    class Broken:
        batch = 1

        def forward(self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
            return np.full((1, 8), np.nan, np.float32)

    with pytest.raises(RuntimeError, match="not numbers"):
        list(decode(Broken(), Sequences([np.array([1])], [2]), GenerationTimings()))


def test_config_is_hugging_faces(single: LlamaForCausalLM) -> None:
    assert (single.config.model_type, single.config.vocab_size) == ("llama", VOCAB)
