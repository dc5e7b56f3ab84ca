"""Makes the logits processors of transformers from a GenerationConfig."""

from __future__ import annotations

from transformers.generation import logits_process as theirs

from edgellama.generation.config import GenerationConfig


def their_warpers(config: GenerationConfig) -> theirs.LogitsProcessorList:
    """Returns the warpers in the order of transformers' generate()."""
    made = theirs.LogitsProcessorList()
    if config.temperature != 1.0:
        made.append(theirs.TemperatureLogitsWarper(config.temperature))
    if config.top_h is not None:
        made.append(theirs.TopHLogitsWarper(config.top_h))
    if config.top_k:
        made.append(theirs.TopKLogitsWarper(config.top_k))
    if config.top_p < 1.0:
        made.append(theirs.TopPLogitsWarper(config.top_p))
    if config.min_p is not None:
        made.append(theirs.MinPLogitsWarper(config.min_p))
    if config.typical_p < 1.0:
        made.append(theirs.TypicalLogitsWarper(config.typical_p))
    if config.epsilon_cutoff:
        made.append(theirs.EpsilonLogitsWarper(config.epsilon_cutoff))
    if config.eta_cutoff:
        made.append(theirs.EtaLogitsWarper(config.eta_cutoff))
    return made


def their_processors(config: GenerationConfig) -> theirs.LogitsProcessorList:
    """Returns the logits processors in the order of transformers' generate()."""
    made = theirs.LogitsProcessorList()
    if config.sequence_bias:
        made.append(theirs.SequenceBiasLogitsProcessor(dict(config.sequence_bias)))
    if config.repetition_penalty != 1.0:
        made.append(theirs.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        made.append(theirs.NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.bad_words_ids:
        words = [list(ids) for ids in config.bad_words_ids]
        made.append(theirs.NoBadWordsLogitsProcessor(words, eos_token_id=list(config.eos_token_id)))
    return made
