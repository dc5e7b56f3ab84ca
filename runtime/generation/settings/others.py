"""Names of transformers' generate() that are no settings here: which are accepted, and what to use for the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...errors import UserError, shown

CLOSE = 0.7  # least similarity of a name that an error suggests, of 1
# They change neither tokens nor memory here: the graphs are compiled, and the cache has a fixed size.
WITHOUT_EFFECT = frozenset(
    [
        *("synced_gpus", "low_memory", "compile_config", "disable_compile", "prefill_chunk_size", "max_cache_len"),
        *("cache_config", "is_assistant", "bos_token_id", "decoder_start_token_id", "position_ids", "token_type_ids"),
        *("return_dict", "return_legacy_cache", "use_cache", "cache_position", "continuous_batching_config"),
        *("assistant_confidence_threshold", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *("assistant_lookbehind", "target_lookbehind", "clean_up_tokenization_spaces", "trust_remote_code"),
    ]
)
PLAIN_CACHES = ("dynamic", "static", "dynamic_full", "hybrid", "sliding_window", "offloaded", "offloaded_static")
_GRAMMAR = "Use logits_processor with edgellama.grammar (Regex, JsonSchema), prefix_allowed_tokens_fn or sequence_bias"
_GUESSES = "Use assistant_model with a model of the same tokens, or prompt_lookup_num_tokens"
_REMOVED = "transformers has removed it from generate() too. Leave it out, or use do_sample with top_k"
_STATES = "The exported graphs do not return it. embed() gives hidden states; transformers gives more"
REMEDIES: Mapping[str, str] = {
    "assistant_tokenizer": _GUESSES,
    "assistant_early_exit": _GUESSES,
    "assistant_ensemble_weight": _GUESSES,
    "speculation_type": _GUESSES,
    "use_mtp": _GUESSES,
    "cache_implementation": "The export fixes the cache. Export with CACHE=int8 for a quantized one",
    "constraints": _GRAMMAR,
    "custom_generate": "Write the loop with stream(), or with model(input_ids).logits",
    "diversity_penalty": "Use num_beams, or do_sample with num_return_sequences",
    "dola_layers": _REMOVED,
    "force_words_ids": _GRAMMAR,
    "forced_bos_token_id": "Append the id to the prompt: a decoder continues from there",
    "guidance_scale": "It needs a second pass of the model for each token. Leave it out, or say it in the prompt",
    "inputs_embeds": "The exported graphs take token ids. Give input_ids",
    "negative_prompt_attention_mask": "It belongs to guidance_scale, which does not work here. Leave it out",
    "negative_prompt_ids": "It belongs to guidance_scale, which does not work here. Leave it out",
    "num_beam_groups": "Use num_beams, or do_sample with num_return_sequences",
    "output_attentions": _STATES,
    "output_hidden_states": _STATES,
    "past_key_values": "The artifact holds the cache. Use session(), Chat, or reuse_prefix=True",
    "penalty_alpha": _REMOVED,
    "token_healing": "End the prompt without a space, and use edgellama.grammar.Regex for a fixed beginning",
    "watermarking_config": (
        'Use logits_processor=[watermarking_config.construct_processor(model.config.vocab_size, "cpu")] with a torch '
        "prompt"
    ),
}
OTHER_NAMES: Mapping[str, str] = {  # what other engines call a setting
    "best_of": "num_return_sequences",
    "frequency_penalty": "repetition_penalty",
    "logit_bias": "sequence_bias",
    "max_output_tokens": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "n": "num_return_sequences",
    "ngram_size": "no_repeat_ngram_size",
    "presence_penalty": "repetition_penalty",
    "random_seed": "seed",
    "stop": "stop_strings",
    "stop_sequences": "stop_strings",
    "stop_token_ids": "eos_token_id",
}


def known_settings(
    caller: str, given: Mapping[str, Any], fields: Collection[str], arguments: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the settings of a call without those that have no effect here.

    Args:
        caller: for messages.
        given: all keywords.
        fields: the names of the settings.
        arguments: the caller's other arguments, which an error may suggest.

    Raises:
        UserError: a setting of transformers that does not work here is in use; the message says what does.
        TypeError: an unknown name; the message gives a setting or argument with a similar name, if there is one.
    """
    kept = {}
    for name, value in given.items():
        if name in fields:
            kept[name] = value
        elif name in REMEDIES:
            plain = name == "cache_implementation" and value in PLAIN_CACHES
            if not plain and not _is_off(value):
                raise UserError(f"{caller}: {name} is {shown(value)}; it does not work here. {REMEDIES[name]}")
        elif name not in WITHOUT_EFFECT:
            raise TypeError(f"{caller} has no keyword {name!r}{_suggestion(name, [*arguments, *sorted(fields)])}")
    return kept


def _is_off(value: Any) -> bool:
    """Whether a value is the one with which transformers leaves the setting out."""
    return value is None or (isinstance(value, (bool, int, float)) and value in (False, 0, 1) and value is not True)


def _suggestion(name: str, known: Sequence[str]) -> str:
    if name in OTHER_NAMES:
        return f"; the nearest is {OTHER_NAMES[name]!r}"
    import difflib  # imported late: it takes a millisecond at each start

    nearest = difflib.get_close_matches(name, known, n=1, cutoff=CLOSE)
    return f"; the nearest is {nearest[0]!r}" if nearest else ". help(edgellama.GenerationConfig) lists the settings"
