"""Snippets of transformers run with an exported model, and give transformers' tokens or an error with the remedy.

The first part are the examples in the docstrings of the installed transformers, its reference guide: their text is run
unchanged. The second part is support/hf_guides.py, one program for each call that the guides teach. In both, the names
of the models mean one small random model, and one of two runs takes that of edgellama. Draws are coupled: both samplers
take the token in the middle of their distribution, so equal tokens mean equal distributions.

`pytest tests/runtime/test_hf_snippets.py -v` prints the list.
"""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import edgellama
from edgellama.errors import UserError
from edgellama.generation.sampler import Sampler
from edgellama.model import LlamaForCausalLM
from support.checkpoints import export_all, make_checkpoint
from support.child import REPOSITORY
from support.exported import scratch
from support.hf_guides import BEGIN, GUIDES
from support.toy_tokenizers import LLAMA3_STYLE

REMEDIES = {"UnbatchedClassifierFreeGuidance": "guidance_scale", "Watermark": "construct_processor"}
PROCESSORS = (
    *("MinLength", "MinNewTokensLength", "RepetitionPenalty", "EncoderRepetitionPenalty", "NoRepeatNGram"),
    *("EncoderNoRepeatNGram", "SequenceBias", "NoBadWords", "PrefixConstrained", "ForcedEOSToken", *REMEDIES),
)
WARPERS = ("Temperature", "TopP", "TopK", "TopH", "MinP", "Typical", "Epsilon", "Eta")
LOGITS = "generation.logits_process"
DOCSTRINGS: dict[str, tuple[str, str]] = {
    **{name: (LOGITS, f"{name}LogitsProcessor") for name in PROCESSORS},
    **{name: (LOGITS, f"{name}LogitsWarper") for name in WARPERS},
    "ExponentialDecayLengthPenalty": (LOGITS, "ExponentialDecayLengthPenalty"),
    "LogitNormalization": (LOGITS, "LogitNormalization"),
    "StopStringCriteria": ("generation.stopping_criteria", "StopStringCriteria"),
    **{name: ("generation.streamers", name) for name in ("TextStreamer", "TextIteratorStreamer")},
    "AsyncTextIteratorStreamer": ("generation.streamers", "AsyncTextIteratorStreamer"),
    "compute_transition_scores": ("generation.utils", "GenerationMixin.compute_transition_scores"),
    **{
        f"{name}ForCausalLM": (f"models.{name.lower()}.modeling_{name.lower()}", f"{name}ForCausalLM.forward")
        for name in ("Llama", "Mistral", "Qwen2")
    },
    "TextGenerationPipeline": ("pipelines.text_generation", "TextGenerationPipeline"),
}
LOADERS = ("AutoModelForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")


def docstring(module: str, name: str) -> str:
    """Returns the example in a docstring of the installed transformers, as a program."""
    found = importlib.import_module(f"transformers.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    return "".join(example.source for example in doctest.DocTestParser().get_examples(inspect.getdoc(found) or ""))


SNIPPETS: dict[str, tuple[str, str | None]] = {
    **{f"docstring: {name}": (docstring(*place), REMEDIES.get(name)) for name, place in DOCSTRINGS.items()},
    **{
        name: (BEGIN + given, None) if isinstance(given, str) else (BEGIN + given[0], given[1])
        for name, given in GUIDES.items()
    },
}


@functools.cache
def checkpoint() -> Path:
    """Returns a random Llama with a tokenizer that is trained on a book, for prompts as short as in the guides."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    words.train([str(REPOSITORY / "exporter" / "proof" / "alice.txt")], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = LLAMA3_STYLE
    folder = scratch() / "guides-model"
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    make_checkpoint(folder, vocab_size=len(tokenizer), max_position_embeddings=512, **ids)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def both() -> tuple[LlamaForCausalLM, Any]:
    """Returns the exported model, and the same in transformers."""
    out = scratch() / "guides-artifact"
    formats: dict[str, Any] = {"target": "cpu", "weights": "fp32", "cache": "float32"}
    export_all([{"model": checkpoint(), "out": out, "batch": 5, "context": 384, "buckets": (8, 32), **formats}])
    reference = transformers.LlamaForCausalLM.from_pretrained(checkpoint()).eval()
    reference.generation_config.length_penalty = 1.0  # an example computes with it; transformers 5 gives None
    return LlamaForCausalLM.from_pretrained(out), reference


def in_the_middle(probabilities: np.ndarray) -> np.ndarray:
    """Returns, of each row, the first token whose cumulated probability reaches a half."""
    return (np.cumsum(probabilities, axis=-1) >= 0.5).argmax(axis=-1)


def run(code: str, model: Any, ours: bool, patch: pytest.MonkeyPatch) -> list[Any]:
    """Runs a program whose models are all `model`; returns the tokens of every generate()."""
    found: list[Any] = []
    generate = type(model).generate

    def recorded(self: Any, *arguments: Any, **settings: Any) -> Any:
        out = generate(self, *arguments, **settings)
        found.append(np.asarray(out if not hasattr(out, "sequences") else out.sequences).tolist())
        return out

    class Loader:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> Any:
            if ours and options:  # the real one checks them
                type(model).from_pretrained(model.artifact.path, **options).close()
            return model

    class Tokenizers:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> Any:
            return load_tokenizer(checkpoint(), **options)

    load_tokenizer, pipe = AutoTokenizer.from_pretrained, edgellama.pipeline if ours else transformers.pipeline

    def pipeline(task: str = "text-generation", model: Any = None, **options: Any) -> Any:
        more = {} if ours else {"tokenizer": load_tokenizer(checkpoint())}
        return pipe(task, model=Loader.from_pretrained(model), **more, **options)

    if ours:
        patch.setattr(transformers, "set_seed", edgellama.set_seed)
    for name in LOADERS:
        patch.setattr(transformers, name, Loader)
    patch.setattr(transformers, "AutoTokenizer", Tokenizers)
    patch.setattr(transformers, "GPT2Tokenizer", Tokenizers)
    patch.setattr(transformers, "pipeline", pipeline)
    patch.setattr(type(model), "generate", recorded)
    before = set(threading.enumerate())
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    return found


def draw(self: Sampler, scores: np.ndarray, row: int, uniform: float) -> int:
    """Replaces Sampler.draw: the token in the middle of the distribution."""
    warped = self.warp(scores.reshape(-1, scores.shape[-1])[row]).astype(np.float64)
    return int(in_the_middle(np.exp(warped - warped.max()) / np.exp(warped - warped.max()).sum()))


def multinomial(probabilities: torch.Tensor, num_samples: int, **options: Any) -> torch.Tensor:
    """Replaces torch.multinomial likewise."""
    assert num_samples == 1
    return torch.tensor(in_the_middle(probabilities.double().numpy()))[:, None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_gives_the_tokens_of_transformers_or_the_remedy(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, remedy = SNIPPETS[name]
    ours, reference = both()
    settings = ours.generation_config.to_dict(), reference.generation_config.to_dict()
    results: list[list[Any]] = []
    attempts: list[Callable[[pytest.MonkeyPatch], None]] = [
        lambda patch: results.append(run(code, ours, True, patch)),
        lambda patch: results.append(run(code, reference, False, patch)),
    ]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sampler, "draw", draw)
            patch.setattr(torch, "multinomial", multinomial)
            if remedy is not None:
                with pytest.raises(UserError, match=remedy):
                    attempts[0](patch)
                return
            for attempt in attempts:
                with patch.context() as inner:
                    attempt(inner)
    finally:
        ours.generation_config = settings[0]
        reference.generation_config = transformers.GenerationConfig(**settings[1])
    assert results[0] and results[0] == results[1]


def test_the_list_is_as_long_as_promised() -> None:
    remedies = [name for name, (_, remedy) in SNIPPETS.items() if remedy is not None]
    assert len(SNIPPETS) >= 58 and len(SNIPPETS) - len(remedies) >= 45
