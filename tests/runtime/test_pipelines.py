"""Compares pipeline("text-generation") with transformers' pipeline on the same weights; uses the toy of tiny.py."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer
from transformers import pipeline as theirs

from edgellama.errors import UserError
from edgellama.pipelines import TextGenerationPipeline, pipeline
from support.child import run_python
from support.exported import chat_checkpoint, export, reference
from support.toy_model import load
from support.toy_tokenizers import SENTENCEPIECE

ONE = "A list of colors: red, blue"
SEVERAL = [ONE, "Portugal is", "x"]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
STARTED = [*CHAT, {"role": "assistant", "content": "Well, the"}]
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "one": (ONE, {}),
    "several": (SEVERAL, {}),
    "a list of one": ([ONE], {}),
    "new text only": (SEVERAL, {"return_full_text": False}),
    "ids": (ONE, {"return_tensors": True}),
    "special tokens": (ONE, {"skip_special_tokens": False, "max_new_tokens": 40}),
    "without bos": (ONE, {"add_special_tokens": False}),
    "prefix": (ONE, {"prefix": "Once. "}),
    "max_length": (SEVERAL, {"max_length": 33, "max_new_tokens": None}),
    "beams": (SEVERAL, {"num_beams": 2, "num_return_sequences": 2}),
    "processors": (SEVERAL, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}),
    "chat": (CHAT, {}),
    "chats": ([CHAT, CHAT[1:]], {}),
    "chat, new text only": (CHAT, {"return_full_text": False}),
    "chat to go on with": (STARTED, {}),
    "chat not to go on with": (STARTED, {"continue_final_message": False}),
    "batches": (SEVERAL, {"batch_size": 2}),
}
CHILD = """
import json, sys
from edgellama import LlamaForCausalLM, pipeline

model = LlamaForCausalLM.from_pretrained(sys.argv[1])
generator = pipeline("text-generation", model=model, do_sample=False)
if sys.argv[3] == "transformers":
    from transformers import AutoTokenizer
    generator = pipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]), do_sample=False)
print(json.dumps([generator(inputs, **settings) for inputs, settings in json.loads(sys.argv[2])]))
"""


@functools.cache
def artifact() -> Path:
    sizes = ["--batch", "2", "--context", "96", "--buckets", "8,32"]
    return export("pipelines", "--target", "portable", "--weights", "fp32", *sizes)


def ours(tokenizer: str) -> dict[str, Any]:
    calls = [[inputs, {"max_new_tokens": 12, **settings}] for inputs, settings in CALLS.values()]
    return dict(zip(CALLS, run_python(CHILD, str(artifact()), json.dumps(calls), tokenizer), strict=True))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return ours("own")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(chat_checkpoint())
    tokenizer.pad_token = tokenizer.eos_token
    generator = theirs("text-generation", model=reference(), tokenizer=tokenizer, do_sample=False)
    out = {}
    for name, (inputs, settings) in CALLS.items():
        kept = {key: value for key, value in settings.items() if value is not None}
        limit = {} if "max_length" in kept else {"max_new_tokens": 12}
        out[name] = generator(inputs, **{**limit, **kept})
    return out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_transformers(name: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found[name] == json.loads(json.dumps(expected[name]))


def test_transformers_tokenizer_may_be_given(found: dict[str, Any]) -> None:
    assert ours("transformers") == found


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> TextGenerationPipeline:
    return pipeline(model=load(tmp_path_factory.mktemp("toy"), batch=3, eos_token_id=()), seed=1)


def words(text: str) -> list[str]:
    return text.split("w")[1:]


def test_defaults_are_hugging_faces_where_the_model_says_nothing(tmp_path: Path, toy: TextGenerationPipeline) -> None:
    (sampled,) = toy("w5", return_full_text=False)
    assert len(words(sampled["generated_text"])) == 63  # the limit is 256, but the context is full
    assert toy("w5", seed=2) != toy("w5", seed=1)
    assert toy("w5", seed=1, temperature=0.7, do_sample=True, max_new_tokens=256) == toy("w5", seed=1)
    loaded = load(tmp_path, batch=3, eos_token_id=())
    stored = {"temperature": 5.0, "max_new_tokens": 4}
    (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    model = type(loaded)(loaded.artifact, loaded.engine)  # reads it
    (other,) = pipeline(model=model)("w5", seed=1, return_full_text=False)
    assert len(words(other["generated_text"])) == 4
    assert other == toy("w5", seed=1, temperature=5.0, max_new_tokens=4, return_full_text=False)[0]


def test_beams_are_sampled_by_default(toy: TextGenerationPipeline) -> None:
    """Hugging Face's pipeline samples by default, too."""
    texts = {
        toy("w5", num_beams=2, max_new_tokens=8, temperature=5.0, seed=seed)[0]["generated_text"] for seed in range(4)
    }
    assert len(texts) > 1


def test_an_iterator_of_prompts_is_answered_one_at_a_time(toy: TextGenerationPipeline) -> None:
    asked = []

    def prompts() -> Iterator[str]:
        for prompt in ("w5", "w9"):
            asked.append(prompt)
            yield prompt

    answers = toy(prompts(), do_sample=False, max_new_tokens=3, num_workers=0, clean_up_tokenization_spaces=False)
    assert next(answers) == toy("w5", do_sample=False, max_new_tokens=3) and asked == ["w5"]
    assert next(answers) == toy("w9", do_sample=False, max_new_tokens=3)


def test_a_tokenizers_folder_and_where_the_model_goes(toy: TextGenerationPipeline) -> None:
    folder = toy.model.artifact.path
    same = pipeline(model=toy.model, tokenizer=folder, device=-1, device_map="auto", dtype="auto", seed=1)
    assert same("w5", max_new_tokens=5) == toy("w5", max_new_tokens=5)
    with pytest.raises(UserError, match="device is 0; the artifact was exported for target portable"):
        pipeline(model=toy.model, device=0)


def test_a_prompt_beside_a_long_one_is_answered_as_alone(toy: TextGenerationPipeline) -> None:
    long = " ".join(["w5"] * 60)
    settings = {"do_sample": False, "max_new_tokens": 9}
    assert toy([long, "w9"], **settings) == [toy(long, **settings), toy("w9", **settings)]


def test_the_space_behind_a_prompt_stays(toy: TextGenerationPipeline) -> None:
    """Llama 2's decoder drops the first space of a text."""
    the, a = (SENTENCEPIECE.model.token_to_id(piece) for piece in ("▁the", "▁a"))
    assert pipeline(model=toy.model, tokenizer=SENTENCEPIECE)._new_text([the], [a], True) == " a"


def test_several_answers_to_several_prompts(toy: TextGenerationPipeline) -> None:
    results = toy(["w5", "w9", "w7"], num_return_sequences=2, max_new_tokens=8, temperature=5.0)
    assert [len(answers) for answers in results] == [2, 2, 2]
    assert all(set(answer) == {"generated_text"} for answers in results for answer in answers)
    assert results[0][0] != results[0][1]
    assert [answers[0]["generated_text"][:2] for answers in results] == ["w5", "w9", "w7"]


def test_a_stop_sequence_ends_the_text_and_leaves_no_padding(toy: TextGenerationPipeline) -> None:
    (free,) = toy("w5", do_sample=False, max_new_tokens=8, return_full_text=False)
    third = "w" + words(free["generated_text"])[2]
    (stopped,) = toy("w5", do_sample=False, max_new_tokens=8, return_full_text=False, stop_sequence=third)
    assert stopped["generated_text"] == free["generated_text"][: free["generated_text"].index(third) + len(third)]


def test_a_row_that_ends_early_has_no_padding_in_its_text(tmp_path: Path) -> None:
    """A pad id that is not a special token would appear in the text."""
    model = load(tmp_path, batch=2, eos_token_id=())
    free = model.generate([[5], [9]], max_new_tokens=8, do_sample=False)[:, 1:]
    eos = int(next(token for token in free[0] if token not in free[1]))
    short, long = pipeline(model=model, do_sample=False, max_new_tokens=8, return_tensors=True)(
        ["w5", "w9"], eos_token_id=eos, pad_token_id=44
    )
    end = int(np.flatnonzero(free[0] == eos)[0]) + 1
    assert short == [{"generated_token_ids": [5, *free[0, :end].tolist()]}]
    assert long == [{"generated_token_ids": [9, *free[1].tolist()]}]


@pytest.mark.parametrize(
    ("inputs", "settings", "error", "message"),
    [
        ("w5", {"max_new_token": 3}, TypeError, r"no keyword 'max_new_token'; the nearest is 'max_new_tokens'"),
        ("w5", {"device": 0}, TypeError, r"no keyword 'device'"),
        ("w5", {"truncation": True}, UserError, r"truncation=True: a cut prompt is another prompt"),
        ("w5", {"return_dict_in_generate": True}, UserError, r"return_dict_in_generate: it returns text"),
        ("w5", {"temperature": -1.0}, UserError, r"temperature is -1"),
        ("w5", {"batch_size": 0}, UserError, r"batch_size is 0"),
        (["w5", 3], {}, UserError, r"text_inputs is \"\['w5', 3\]\"; needed: a text, a list of messages"),
        ([], {}, UserError, r"text_inputs is '\[\]'"),
        (7, {}, UserError, r"text_inputs is '7'"),
        (CHAT, {}, UserError, r"no chat template"),
        ([{"role": "assistant", "content": None}], {}, UserError, r"content is None; needed: a text to continue"),
    ],
)
def test_invalid_calls_are_refused(
    toy: TextGenerationPipeline, inputs: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        toy(inputs, **settings)


def test_an_unknown_task_and_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task is 'summarization'; this runtime has 'text-generation' only"):
        pipeline("summarization", model=tmp_path)
    with pytest.raises(UserError, match=r"no manifest\.json, so it is not an exported artifact"):
        pipeline("text-generation", model=tmp_path)
    with pytest.raises(UserError, match="no model given"):
        pipeline("text-generation")
    with pytest.raises(TypeError, match=r"pipeline has no keyword 'torch_type'"):
        pipeline(model=load(tmp_path / "toy"), torch_type="auto")
