"""The keys of a config.json that may be ignored: data for `LlamaConfig.from_dict`.

A key that is neither a field of LlamaConfig nor listed here is refused, because it may change the mathematics.
"""

from __future__ import annotations

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
eod_token_id cache_implementation
"""
NEUTRAL_KEYS = frozenset(_NEUTRAL.split())
# Metadata of the tool that saved the config: transformers' convention is "_", other tools use their names.
NEUTRAL_PREFIXES = ("_", "transformers.", "unsloth_")

# Keys that change the mathematics unless they hold one of these values (null always means "not set").
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),  # for architectures without this field: Mistral, Qwen2
    "embedding_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "cross_attention_hidden_size": (),
    "is_decoder": (False, True),  # Llama is causal either way
    "is_encoder_decoder": (False,),
    "layer_types": (),  # `refusal` checks the values
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

REMEDIES: dict[str, str] = {
    "quantization_config": "export the unquantized checkpoint, or a GGUF file of it",
    "quantization": "export the unquantized checkpoint, or a GGUF file of it",
    "auto_map": "only transformers' Llama is supported, not a model with its own code",
}


def refusal(key: str, value: Any, own_code: bool = False) -> str | None:
    """Return why a key that the architecture lacks is refused, with the remedy; None if it may be ignored.

    own_code: the published model has its own code, which the exporter knows.
    """
    if value is None or key in NEUTRAL_KEYS or key.startswith(NEUTRAL_PREFIXES):
        return None
    if key == "auto_map":
        # Custom code of a tokenizer or config class does not change the network; custom code of a model does.
        refused = not own_code and any(name.startswith("AutoModel") for name in value)
    elif key == "layer_types":
        refused = any(kind != "full_attention" for kind in value)
    elif key in NEUTRAL_VALUES:
        refused = value not in NEUTRAL_VALUES[key]
    else:
        return (
            f"{shown(key)[1:-1]} = {shown(value)} is not a known Llama setting and may change the mathematics; "
            "if it does not, remove it from config.json"
        )
    remedy = REMEDIES.get(key, "export a checkpoint without it")
    return f"{key} = {shown(value, 200)} is not supported; {remedy}" if refused else None
