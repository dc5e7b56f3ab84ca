"""The keys of a config.json that may be ignored: data for `LlamaConfig.from_dict`.

A key that is neither a field of LlamaConfig nor listed here is refused, because it may change the mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellama.errors import shown

# Metadata, and settings of training and decoding: they do not change the logits of a forward pass.
_NEUTRAL = """
name_or_path attention_dropout attn_implementation architectures dtype finetuning_task gradient_checkpointing id2label
initializer_range is_llama_config keys_to_ignore_at_inference label2id max_sequence_length model_max_length
output_attentions output_hidden_states prefix pretraining_tp problem_type return_dict sep_token_id
task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript
transformers_version use_bfloat16 use_cache use_flash_attention use_flash_attn
use_return_dict vocab_file chunk_size_feed_forward decoder_start_token_id remove_invalid_values
bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores repetition_penalty
return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
neftune_noise_alpha use_reentrant_checkpointing use_flashattn attention_probs_dropout_prob classifier_dropout dropout
embd_pdrop embedding_dropout hidden_dropout hidden_dropout_prob resid_pdrop residual_dropout
eod_token_id cache_implementation unk_token_id mask_token_id cls_token_id ignore_index attn_pdrop embed_dropout
internal_version context_window
"""
NEUTRAL_KEYS = frozenset(_NEUTRAL.split())
# Metadata of the tool that saved the config: transformers' convention is "_", other tools use their names.
NEUTRAL_PREFIXES = ("_", "transformers.", "unsloth_")

# Keys that change the mathematics unless they hold one of these values (null always means "not set").
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "activation": ("swiglu",),  # another name of silu with a gate, in Falcon3
    "add_cross_attention": (False,),
    "attention_bias": (False,),  # for architectures without this field: Mistral, Qwen2
    "embedding_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "cross_attention_hidden_size": (),
    "is_decoder": (False, True),  # Llama is causal either way
    "is_encoder_decoder": (False,),
    "layer_types": (),  # `refusals` checks the values
    "logits_scaling": (1, 1.0),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "pruned_heads": ({},),
    "qk_layernorm": (False,),
    "qkv_bias": (False,),
    "quantization": (),
    "quantization_config": (),
    "residual_multiplier": (1, 1.0),
    "rope_interleaved": (False,),
    "rope_traditional": (False,),
    "sliding_window": (),
    "tie_encoder_decoder": (False,),
    "use_bidirectional_attention": (False,),
    "use_cla": (False,),
    "use_mla": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
}

MOST_KEYS = 5  # that one message names
REMEDIES: dict[str, str] = {
    "quantization_config": "export the unquantized checkpoint, or a GGUF file of it",
    "quantization": "export the unquantized checkpoint, or a GGUF file of it",
    "auto_map": "only classes of transformers are supported, not a model with its own code",
}


def refusals(unknown: Mapping[str, Any], architecture: str, own_code: bool = False) -> list[str]:
    """Return why keys that the architecture lacks are refused, with the remedy; empty if all may be ignored.

    Keys that no table knows are in one sentence.

    Args:
        unknown: the keys and their values.
        architecture: the name of its class, for the message.
        own_code: the published model has its own code, which the exporter knows.
    """
    given = {
        key: value
        for key, value in unknown.items()
        if not (value is None or key in NEUTRAL_KEYS or key.startswith(NEUTRAL_PREFIXES))
    }
    problems = [
        f"{key} = {shown(value, 200)} is not supported; {REMEDIES.get(key, 'export a checkpoint without it')}"
        for key, value in given.items()
        if _is_listed(key) and _is_refused(key, value, own_code)
    ]
    strange = [f"{shown(key)[1:-1]} = {shown(value)}" for key, value in given.items() if not _is_listed(key)]
    if not strange:
        return problems
    more = f" and {len(strange) - MOST_KEYS} more keys" if len(strange) > MOST_KEYS else ""
    verb, they = ("are no known settings", "they change") if len(strange) > 1 else ("is no known setting", "it changes")
    problems.append(
        f"{', '.join(strange[:MOST_KEYS])}{more} {verb} of {architecture} and may change the mathematics. Choose "
        f"another checkpoint; if {they} nothing, remove {'them' if len(strange) > 1 else 'it'} from config.json"
    )
    return problems


def _is_listed(key: str) -> bool:
    return key in NEUTRAL_VALUES or key == "auto_map"


def _is_refused(key: str, value: Any, own_code: bool) -> bool:
    if key == "auto_map":
        # Custom code of a tokenizer or config class does not change the network; custom code of a model does.
        return not own_code and any(name.startswith("AutoModel") for name in value)
    if key == "layer_types":
        return any(kind != "full_attention" for kind in value)
    return value not in NEUTRAL_VALUES[key]
