"""At each step, generate() draws from the same distribution as transformers' generate(): each setting alone, every pair
of settings, and the usual combinations.

transformers runs a tiny random model with output_logits and output_scores; TokenSelector gets its logits and token ids.
So the order in which settings act is transformers' word too, not only what each does.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgellama.generation.config import GenerationConfig
from edgellama.generation.sequences import Sequences
from edgellama.generation.token_selector import TokenSelector
from support.distributions import assert_same_scores

ROWS, PROMPT, STEPS, VOCAB = 3, 12, 10, 60
EOS = [3, 41]
SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 12},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.08},
    "typical_p": {"typical_p": 0.7},
    "repetition_penalty": {"repetition_penalty": 1.4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[5], [3], [6, 2], [1, 7, 4]]},
    "sequence_bias": {"sequence_bias": {(2,): 2.5, (9,): -4.0, (4, 1): 3.0, (6, 0): -30.0}},
    "min_new_tokens": {"min_new_tokens": 6},
}
USUAL = [
    ("temperature", "top_p"),  # Llama 3
    ("temperature", "top_k", "top_p"),
    ("temperature", "min_p"),
    ("temperature", "top_k", "top_p", "repetition_penalty"),  # Qwen2.5
    ("repetition_penalty", "no_repeat_ngram_size"),
    ("temperature", "top_p", "bad_words_ids", "min_new_tokens"),
    ("temperature", "typical_p", "sequence_bias"),
    tuple(SETTINGS),
]
ALONE = [(name,) for name in SETTINGS]
PAIRS = list(itertools.combinations(SETTINGS, 2))
PROCESSORS = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "min_new_tokens")
NAMES = list(dict.fromkeys([*ALONE, *PAIRS, *USUAL]))


@functools.cache
def network() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,  # logits with a range of several units
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


def steps(names: tuple[str, ...], sample: bool) -> int:
    """Compares every step of every active row with transformers; returns how many rows of scores are not the logits."""
    settings = {key: value for name in names for key, value in SETTINGS[name].items()}
    if "top_k" not in settings and sample:
        settings["top_k"] = 0  # the default is 50 in both libraries
    ids = np.random.default_rng(len(names)).integers(0, 8, (ROWS, PROMPT))  # few ids, so that they repeat
    torch.manual_seed(1)
    out = network().generate(
        torch.tensor(ids),
        attention_mask=torch.ones(ids.shape, dtype=torch.long),
        max_new_tokens=STEPS,
        do_sample=sample,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    config = GenerationConfig(do_sample=sample, eos_token_id=EOS, output_scores=True, **settings)
    generators = [np.random.default_rng(row) for row in range(ROWS)]
    selector, sequences = TokenSelector(config, VOCAB, generators), Sequences(list(ids), [STEPS] * len(ids))
    changed = 0
    for step, (logits, expected) in enumerate(zip(out.logits, out.scores, strict=True)):
        selector(sequences, logits.numpy().copy())
        live = sequences.live.copy()
        assert_same_scores(selector.scores[-1][live], expected.numpy()[live])
        changed += int((selector.scores[-1][live] != logits.numpy()[live]).any(axis=1).sum())
        sequences.push(out.sequences[:, PROMPT + step].numpy())
        sequences.finish(np.isin(sequences.last(), EOS), "eos")
    return changed


@pytest.mark.parametrize("names", NAMES, ids="+".join)
def test_sampling(names: tuple[str, ...]) -> None:
    assert steps(names, sample=True) > 0


@pytest.mark.parametrize(
    "names", [names for names in NAMES if set(names) <= set(PROCESSORS)] + [PROCESSORS], ids="+".join
)
def test_greedy(names: tuple[str, ...]) -> None:
    """The processors change greedy decoding as well."""
    assert steps(names, sample=False) > 0
