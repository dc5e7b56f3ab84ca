"""Compares an artifact in MindSpore Lite with transformers on the same weights: generate, stream, command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from edgellama.artifact.files import sha256_file
from edgellama.artifact.manifest import MANIFEST
from edgellama.text.tokenizer import Tokenizer
from support.child import run_child, run_cli, run_python
from support.exported import (
    BUCKETS,
    CONTEXT,
    chat_checkpoint,
    export,
    export_tiny,
    generate,
    reference,
)
from support.manifest_edits import rewrite
from support.toy_model import padded

VOCAB = 265
TARGETS = pytest.mark.parametrize("target", ["portable", "cpu"])
PAD = 7  # a byte token and therefore no eos, so Hugging Face infers the mask from it


def expected(**call: Any) -> np.ndarray:
    """Returns the result of transformers' generate for the same arguments."""
    tensors = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in call.items()}
    with torch.no_grad():
        return reference().generate(**tensors, do_sample=False).numpy()


def prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(sum(lengths))
    return [(rng.integers(8, VOCAB - 3, n)).tolist() for n in lengths]


@TARGETS
def test_greedy_tokens_at_every_bucket_edge(target: str) -> None:
    lengths = sorted({max(1, n + d) for n in (*BUCKETS, 3 * BUCKETS[-1] - 4) for d in (-1, 0, 1)})
    calls = [{"input_ids": np.array([row]), "max_new_tokens": 12, "eos_token_id": -1} for row in prompts(*lengths)]
    for call, got in zip(calls, generate(export_tiny(target, chat=True), *calls), strict=True):
        room = min(12, CONTEXT - call["input_ids"].shape[1])
        np.testing.assert_array_equal(got, expected(**{**call, "max_new_tokens": room, "pad_token_id": 0}))


@TARGETS
def test_padded_batches_as_transformers_pads_and_stops_them(target: str) -> None:
    """The mask is given or inferred, there are one or several eos ids, and more prompts than rows in the artifact."""
    rows = prompts(5, 11, 1, 33, 8)
    ids, mask = padded(rows, "left", PAD)
    free = expected(input_ids=ids, attention_mask=mask, max_new_tokens=16, eos_token_id=-1, pad_token_id=PAD)
    eos = [int(free[0, ids.shape[1] + 3]), int(free[3, ids.shape[1] + 6])]
    calls = [
        {"attention_mask": mask, "eos_token_id": eos, "pad_token_id": PAD},
        {"attention_mask": mask, "eos_token_id": eos[0]},
        {"eos_token_id": eos, "pad_token_id": PAD},
        {"pad_token_id": PAD, "max_length": ids.shape[1] + 5},
    ]
    calls = [{"input_ids": ids, "max_new_tokens": 16, **call} for call in calls]
    calls[-1].pop("max_new_tokens")
    for call, got in zip(calls, generate(export_tiny(target, chat=True), *calls), strict=True):
        np.testing.assert_array_equal(got, expected(**call))


def test_right_padding_gives_what_left_padding_gives() -> None:
    rows = prompts(4, 9)
    ids, mask = padded(rows, "left", PAD)
    right, _ = padded(rows, "right", PAD)
    a, b = generate(
        export_tiny(chat=True),
        {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 8},
        {"input_ids": right, "pad_token_id": PAD, "max_new_tokens": 8},
    )
    np.testing.assert_array_equal(a[:, 9:], b[:, 9:])


def test_processors_give_transformers_tokens() -> None:
    """Each setting that changes greedy decoding, alone and all together.

    The prompts have the same length, because transformers also penalises padding.
    """
    ids = np.array(prompts(9, 9))
    free = expected(input_ids=ids, max_new_tokens=24, eos_token_id=-1, pad_token_id=PAD)[:, 9:]
    words = [[int(free[0, 2])], free[1, 3:5].tolist(), free[0, 5:8].tolist()]
    bias = [[[int(free[0, 4])], -3.0], [free[1, 6:8].tolist(), -50.0], [[int(free[1, 1])], 2.0]]
    alone: list[dict[str, Any]] = [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": words},
        {"sequence_bias": bias},
        {"min_new_tokens": 12, "eos_token_id": [int(free[0, 0]), int(free[1, 5])]},
    ]
    together = {name: value for one in alone for name, value in one.items()}
    calls = [
        {"input_ids": ids, "max_new_tokens": 24, "eos_token_id": -1, "pad_token_id": PAD, **settings}
        for settings in [*alone, together]
    ]
    for call, got in zip(calls, generate(export_tiny(chat=True), *calls), strict=True):
        np.testing.assert_array_equal(got, expected(**call))
        assert not np.array_equal(got[:, 9:], free)  # each setting changes something


@TARGETS
def test_beam_search_gives_transformers_tokens(target: str) -> None:
    """More prompts than fit in one batch, beams that end at different steps, and every rule for early stopping."""
    sizes = ["--batch", "6", "--context", "64", "--buckets", "16"]
    wide = export(f"wide-{target}", "--target", target, "--weights", "fp32", "--cache", "float32", *sizes)
    ids, mask = padded(prompts(5, 11, 1, 8), "left", PAD)
    base = {"input_ids": ids, "attention_mask": mask, "pad_token_id": PAD, "max_new_tokens": 14}
    free = expected(**base, num_beams=3, num_return_sequences=3, eos_token_id=-1)[:, ids.shape[1] :]
    eos = [int(free[0, 4]), int(free[4, 7]), int(free[7, 2])]
    choices: list[dict[str, Any]] = [
        {"num_beams": 2, "eos_token_id": -1},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0},
        {"num_beams": 6, "num_return_sequences": 2, "length_penalty": -1.0, "early_stopping": True},
        {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never", "num_return_sequences": 2},
        {"num_beams": 4, "early_stopping": "never", "length_penalty": 1.5},
        {"num_beams": 3, "early_stopping": True, "eos_token_id": eos[0]},
        {"num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
    ]
    calls = [{**base, "eos_token_id": eos, **choice} for choice in choices]
    lengths = set()
    for call, got in zip(calls, generate(wide, *calls), strict=True):
        np.testing.assert_array_equal(got, expected(**call))
        lengths.update((got[:, ids.shape[1] :] != PAD).sum(axis=1).tolist())
    assert len(lengths) > 4  # including texts that end early


BEAMS = """
import json, sys
from edgellama import LlamaForCausalLM

model = LlamaForCausalLM.from_pretrained(sys.argv[1])
out = model.generate(**json.loads(sys.argv[2]))
print(json.dumps({
    "sequences": out.sequences.tolist(), "beam_indices": out.beam_indices.tolist(),
    "sequences_scores": out.sequences_scores.tolist(), "scores": [s.tolist() for s in out.scores],
    "logits": [s.tolist() for s in out.logits], "finish_reasons": out.finish_reasons,
}))
"""


def test_beam_search_reports_what_transformers_reports() -> None:
    """Scores, logits and indices of every step; texts that end by eos, by a stop string, or by the length."""
    sizes = ["--batch", "6", "--context", "64", "--buckets", "16"]
    artifact = export("wide-beams", "--target", "portable", "--weights", "fp32", *sizes)
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    ids, mask = padded(prompts(5, 11), "left", PAD)
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "pad_token_id": PAD, "max_new_tokens": 10}
    call |= {"num_beams": 3, "num_return_sequences": 3, "length_penalty": -1.0, "repetition_penalty": 1.2}
    free = expected(**call, eos_token_id=-1)[:, ids.shape[1] :]
    call["eos_token_id"] = int(free[0, 3])
    letters = [tokenizer.decode([int(token)]) for token in free[3]]
    call["stop_strings"] = next(letter for letter in letters[2:] if letter.isascii())
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in call.items()}
    found = run_python(BEAMS, str(artifact), json.dumps({**plain, **asked}))
    tensors = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in call.items()}
    with torch.no_grad():
        wanted = reference().generate(**tensors, **asked, do_sample=False, tokenizer=tokenizer)
    np.testing.assert_array_equal(found["sequences"], wanted.sequences)
    np.testing.assert_array_equal(found["beam_indices"], wanted.beam_indices)
    np.testing.assert_allclose(found["sequences_scores"], wanted.sequences_scores, rtol=1e-4)
    for name in ("scores", "logits"):
        assert len(found[name]) == len(wanted[name])
        for step, (ours, theirs) in enumerate(zip(found[name], wanted[name], strict=True)):
            runs = np.ptp(found["logits"][step], axis=1) > 0  # this runtime does not compute a finished prompt
            assert runs[:3].any() or runs[3:].any() if step else runs.all()
            np.testing.assert_allclose(np.array(ours)[runs], theirs[runs], atol=1e-3)
    assert {"eos", "stop_string"} <= set(found["finish_reasons"])


TUTORIAL = """
import json, sys
import numpy as np
from edgellama import LlamaForCausalLM

model = LlamaForCausalLM.from_pretrained(sys.argv[1])

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
input_ids = np.array(tokenizer(["A list of colors: red, blue"]).input_ids, np.int32)
generated_ids = model.generate(
    input_ids=input_ids,
    max_new_tokens=30,
    use_cache=True,
    do_sample=False,
)
one = tokenizer.batch_decode(generated_ids, skip_special_tokens=True)[0].strip()

tokenizer.pad_token = tokenizer.eos_token  # Most LLMs don't have a pad token by default
input_ids = np.array(tokenizer(
    ["A list of colors: red, blue", "Portugal is"], padding=True
).input_ids, np.int32)
generated_ids = model.generate(
    input_ids=input_ids,
    max_new_tokens=30,
    use_cache=True,
    do_sample=False,
)
two = tokenizer.batch_decode(generated_ids, skip_special_tokens=True)
print(json.dumps([one, two]))
"""


@pytest.mark.filterwarnings("ignore")
def test_the_tutorials_two_cases() -> None:
    one, two = run_python(TUTORIAL, str(export_tiny(chat=True)))
    tokenizer = AutoTokenizer.from_pretrained(chat_checkpoint())
    tokenizer.pad_token = tokenizer.eos_token
    texts = ["A list of colors: red, blue", "Portugal is"]
    ids = np.array(tokenizer(texts[:1]).input_ids)
    assert (
        one == tokenizer.batch_decode(expected(input_ids=ids, max_new_tokens=30), skip_special_tokens=True)[0].strip()
    )
    ids = np.array(tokenizer(texts, padding=True).input_ids)
    assert two == tokenizer.batch_decode(expected(input_ids=ids, max_new_tokens=30), skip_special_tokens=True)


def test_both_tokenizers_of_the_artifact_agree() -> None:
    ours, theirs = Tokenizer.from_folder(export_tiny(chat=True)), AutoTokenizer.from_pretrained(export_tiny(chat=True))
    for text in ("The capital of France is", " ça va? 🙂\n\n", "<s>x</s>", ""):
        assert ours.encode(text) == theirs(text).input_ids
    chat = [{"role": "user", "content": "Hi"}]
    assert ours.encode_chat(chat) == theirs.apply_chat_template(chat, add_generation_prompt=True).input_ids


def test_the_command_line_answers_through_the_chat_template_and_raw() -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_checkpoint())
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    for prompt, options in ((chat, []), (tokenizer("Hi").input_ids, ["--raw"])):
        arguments = ["generate", str(export_tiny(chat=True)), "--prompt", "Hi", "--max-new-tokens", "20", *options]
        done = run_cli(*arguments, "--json")
        report = json.loads(done.stdout)
        answer = expected(input_ids=np.array([prompt]), max_new_tokens=20)[0, len(prompt) :].tolist()
        assert (report["prompt_ids"], report["ids"]) == (prompt, answer)
        assert report["text"] == tokenizer.decode(answer, skip_special_tokens=True)
        assert report["finish_reason"] == ("eos" if answer[-1] == tokenizer.eos_token_id else "length")
        streamed = run_cli(*arguments)
        assert streamed.stdout == report["text"] + "\n"
        # only our two lines; the output of native libraries is hidden
        assert [line.split()[0] for line in streamed.stderr.splitlines()] == ["Loading", f"[{report['finish_reason']};"]


def test_the_remedy_for_a_long_prompt_works() -> None:
    prompt = "x" * 150
    done = run_cli("generate", str(export_tiny(chat=True)), "--prompt", prompt, "--raw")
    assert done.returncode == 2 and done.stdout == ""
    found = re.search(
        r"prompt has 151 tokens; this artifact holds 64 \(context\).*MODEL=(\S+) CONTEXT=(\d+)", done.stderr
    )
    assert found and Path(found[1]) == chat_checkpoint()
    longer = export("longer", "--context", found[2])
    again = run_cli("generate", str(longer), "--prompt", prompt, "--raw", "--max-new-tokens", "2", "--json")
    assert again.returncode == 0, again.stderr
    assert len(json.loads(again.stdout)["ids"]) == 2


def test_a_graph_that_no_export_wrote_is_refused_before_native_code_reads_it(tmp_path: Path) -> None:
    """The manifest has a matching hash and digest."""
    folder = tmp_path / "damaged"
    shutil.copytree(export_tiny(chat=True), folder)
    values = json.loads((folder / MANIFEST).read_text())
    (graph,) = values["graphs"]
    path = folder / graph["file"]
    path.write_bytes(b"\x00" * path.stat().st_size)
    rewrite(folder, graphs=[{**graph, "sha256": sha256_file(path)}])
    done = run_cli("generate", str(folder), "--prompt", "Hi")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"byte 0: ModelProto has no field of number 0\. .* Export again with this release$", done.stderr)
    code = (
        "import sys; from pathlib import Path; from edgellama.backend.lite_graph import LiteGraph\n"
        "LiteGraph(Path(sys.argv[1]), 1)"
    )
    lines = run_child("-c", code, str(path), status=1).stderr.splitlines()  # MindSpore Lite itself, and its log
    assert any("MindSpore Lite could not load it" in line for line in lines)
    assert "The native log ends:" in lines and any("ERROR" in line for line in lines)


def test_a_manifest_that_contradicts_its_graph_is_refused_at_load(tmp_path: Path) -> None:
    """The manifest agrees with itself and has a matching digest; the graph was traced for a cache twice as long."""
    folder = tmp_path / "shorter"
    shutil.copytree(export_tiny(chat=True), folder)
    values = json.loads((folder / MANIFEST).read_text())
    context = values["context"]

    def halved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: halved(item) for key, item in value.items()}
        if isinstance(value, list) and len(value) == 4:
            return [item // 2 if item == context else halved(item) for item in value]
        return [halved(item) for item in value] if isinstance(value, list) else value

    smaller = {key: halved(values[key]) for key in ("graphs", "cache")}
    buckets = [bucket for bucket in values["buckets"] if bucket <= context // 2]
    assert buckets == values["buckets"], "the graph serves them all"
    rewrite(folder, **smaller, context=context // 2)
    done = run_cli("generate", str(folder), "--prompt", "Hi")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"its data file has [\d,]+ bytes; the weights take [\d,]+\. .* Export again", done.stderr)
