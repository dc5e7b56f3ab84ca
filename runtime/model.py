"""The model as Hugging Face users know it: from_pretrained, generate, stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from .artifact.files import COMPANIONS
from .artifact.manifest import Artifact
from .conversation.methods import ChatMethods
from .conversation.session import Session
from .conversation.transcript import Transcripts
from .engine.engine import Engine
from .errors import UserError
from .generation.batch import Batch, GenerateCall, batch_output
from .generation.config import GenerationConfig
from .generation.decode import GenerationTimings
from .generation.output import Streamer, as_given
from .generation.prompt import prepare_prompts, prompt_ids
from .generation.sequences import join
from .generation.speculative import DraftModel, Guesser, check_same_tokens
from .generation.stored_settings import artifact_settings
from .generation.stream import Stream
from .generation.tensors import Convert, kind_of_result
from .hf_keywords import as_callables, check_placement, next_seed, time_limit
from .hf_model import ModelMethods
from .progress import progress
from .scoring import ScoringMethods
from .text.template_files import check_syntax
from .text.tokenizer import Tokenizer

# Arguments of generate() and stream() besides settings.
ARGUMENTS: tuple[str, ...] = ("generation_config", "tokenizer", "use_cache", "reuse_prefix", "adapter_names")
ARGUMENTS = (*ARGUMENTS, "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "assistant_model")


class LlamaForCausalLM(ChatMethods, ModelMethods, ScoringMethods):
    """A loaded artifact. One generation runs at a time; other threads wait for it.

    generate() and stream() compute their whole prompt, so that the same call gives the same tokens. With reuse_prefix
    they compute only what the cache does not hold of the prompt from earlier generations. The tokens are then those of
    a fresh start up to rounding: a prompt that is cut elsewhere into passes gives logits that differ by about 1e-6 of
    their range in float32, and by 4e-3 where kernels quantize activations (int8 weights); prefill buckets differ by as
    much. Sessions and chats always reuse the cache.

    Attributes:
        artifact: the artifact folder, with its manifest.
        engine: runs the graphs; holds the KV cache.
        generation_config: the default settings, at first the artifact's; they can be assigned.
        transcripts: the latest turns of all chats with this model.
    """

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self.artifact = artifact
        self.engine = engine
        self._generation_config = artifact_settings(artifact)
        self.transcripts = Transcripts()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        device_id: int | None = None,
        check: str = "once",
        weights_memory: str = "copy",
        show_progress: bool = False,
        show_native_log: bool = False,
        **hugging_face: Any,
    ) -> LlamaForCausalLM:
        """Load an artifact.

        Args:
            path: the artifact folder, as `make export` writes it.
            threads: CPU threads; None takes all available ones.
            device_id: the NPU, for artifacts of Ascend targets; None takes the first.
            check: "once" hashes every file at the first load on this machine, and again only after it has changed;
                "always" hashes at every load; "sizes" hashes the graph files only.
            weights_memory: "copy" reads the weights into private memory; "map" shares the file's pages with other
                processes, and the file must not change while the model is used (`Engine`).
            show_progress: print a line on standard error while the model loads.
            show_native_log: print what MindSpore Lite logs while loading; otherwise only a failure prints it.
            hugging_face: device, device_map, dtype and torch_dtype are accepted if they name what the artifact was
                exported for.

        Raises:
            UserError: the folder is no complete, unchanged artifact that this runtime can run.
            TypeError: an unknown keyword.
        """
        artifact = Artifact.open(path, check=check, show_progress=show_progress, weights_later=True)
        check_placement("from_pretrained", hugging_face, artifact.manifest)
        check_syntax(artifact.path)
        size = sum(entry.bytes for entry in artifact.manifest.files()) / 1e6
        what = f"Loading {artifact.manifest.name} ({size:,.0f} MB)"
        with progress(what) if show_progress else nullcontext():
            engine = Engine(
                artifact, threads, device_id=device_id, weights_memory=weights_memory, show_native_log=show_native_log
            )
            model = cls(artifact, engine)
        artifact.require_unchanged(artifact.seen)
        return model

    @property
    def config(self) -> SimpleNamespace:
        """The Hugging Face config as attributes."""
        return SimpleNamespace(**{"is_encoder_decoder": False, **self.artifact.manifest.config})

    @property
    def device(self) -> str:
        """Where inputs and results are: always "cpu", also with an NPU."""
        return "cpu"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer. `transformers.AutoTokenizer.from_pretrained(<artifact>)` works as well.

        Raises UserError if the artifact has none, or its files were changed since the model was loaded.
        """
        self.artifact.require_unchanged(COMPANIONS)
        tokenizer = Tokenizer.from_folder(self.artifact.path)
        self.artifact.require_unchanged(COMPANIONS)
        return tokenizer

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        inputs: Any = None,
        streamer: Streamer | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Callable[[int, Any], Sequence[int]] | None = None,
        generation_config: Any = None,
        tokenizer: Any = None,
        use_cache: bool = True,
        reuse_prefix: bool = False,
        adapter_names: Sequence[str] | None = None,
        assistant_model: LlamaForCausalLM | None = None,
        token_type_ids: Any = None,
        **settings: Any,
    ) -> Any:
        """Continue each prompt, as Hugging Face's generate() does.

        A row ends with any id of eos_token_id, after max_new_tokens, at max_length, or where it fills the context; then
        pad_token_id fills it. More rows than the artifact's batch run in several batches, each row as it would run
        alone. `cancel` ends the call early, with the tokens so far.

        Args:
            input_ids: [B, n] (array, tensor or list), padded on either side.
            attention_mask: [B, n] of 0 and 1; None infers it from pad_token_id, unless that is an eos id.
            inputs: another name for input_ids.
            streamer: its `put` gets the prompts [B, n], then each step's tokens [B]; `end` follows. Needs all rows in
                one batch, and no beams.
            logits_processor: a callable or a list of them, called for each batch with input_ids [rows, n] and scores
                [rows, V], torch tensors if the prompt is one; returns scores.
            stopping_criteria: a callable or a list of them, called likewise; returns one boolean, or one per row. With
                num_beams it gets the candidates of one prompt.
            prefix_allowed_tokens_fn: called for each row with the number of its prompt and its ids [n] without
                padding; returns the ids that may follow.
            generation_config: settings; they override the artifact's.
            tokenizer: accepted because Hugging Face needs it for stop_strings; the artifact's own is used.
            use_cache: only True is possible.
            reuse_prefix: compute only what the cache does not hold of the prompts.
            adapter_names: the LoRA adapter of each prompt, "__base__" for none; None takes the active one.
            assistant_model: a smaller model with the same tokens; it guesses, and this model checks several guesses in
                one pass. The tokens are the same. For one sequence at a time.
            token_type_ids: accepted because some tokenizers give it; these models do not use it.
            settings: fields of GenerationConfig; they override generation_config. With num_return_sequences the answers
                to a prompt follow one another. Each beam takes a row, so num_beams is at most the artifact's batch.

        Returns:
            int64 [B, n + new], prompts first; a GenerateOutput with return_dict_in_generate. The arrays are torch
            tensors if input_ids is one.

        Raises:
            UserError: input or settings do not fit.
            TypeError: an unknown keyword.
        """
        arguments = ("input_ids", "attention_mask", "inputs", "streamer", *ARGUMENTS)
        kind = kind_of_result(inputs if input_ids is None else input_ids)
        callables = (kind, logits_processor, stopping_criteria, prefix_allowed_tokens_fn)
        call = self._call("generate", arguments, settings, generation_config, callables, use_cache, reuse_prefix)
        if (input_ids is None) == (inputs is None):
            raise UserError("needed: one of input_ids and inputs, which is another name of it")
        given = inputs if input_ids is None else input_ids
        ids, rows, limits = prepare_prompts(given, attention_mask, call.config, self.engine.vocab_size, self.artifact)
        least = max(call.config.min_new_tokens, call.config.min_length - ids.shape[1])
        config = replace(call.config, min_new_tokens=least)
        adapters = self._adapter_numbers(adapter_names, len(rows))
        call = replace(call, config=config, adapters=adapters, draft=self._draft(assistant_model))
        if call.config.num_beams > 1:
            if name := call.guesses:
                raise UserError(f"{name} does not go with num_beams. Leave one of them out")
            if streamer is not None:
                raise UserError("a streamer does not go with num_beams: the texts are known at the end. Leave it out")
            source = self.artifact.manifest.source.model
            from .generation.beam_batch import beam_search  # imported late: few calls need it

            return as_given(beam_search(self.engine, lambda: self.tokenizer, call, source, ids, rows, limits), kind)
        several = call.config.num_return_sequences
        ids = np.repeat(ids, several, axis=0)
        rows, limits = [row for row in rows for _ in range(several)], np.repeat(limits, several).tolist()
        if streamer is not None and len(rows) > self.engine.batch:
            raise UserError(
                f"a streamer sees one batch of rows, and {len(rows)} rows take several ({self.engine.batch} each). "
                "Give fewer prompts"
            )
        timings = GenerationTimings()
        batches = self._run(call, ids, rows, limits, kind, streamer, timings)
        new = [batch.sequences.new(index) for batch in batches for index in range(len(batch.sequences))]
        sequences = join(ids, new, call.config.padding)
        whole = call.config.return_dict_in_generate
        return as_given(batch_output(sequences, batches, timings) if whole else sequences, kind)

    def cancel(self) -> None:
        """End the running generation, if there is one, before its next pass; from any thread, or a signal handler.

        stream() then yields a last piece with finish_reason "cancelled"; generate() returns the tokens so far. Ctrl-C
        raises KeyboardInterrupt out of either, as everywhere in Python. The model stays usable in each case.
        """
        self.engine.engine_lock.cancel()

    def forget(self) -> None:
        """Drop the content of the KV cache, so that the next generation computes its whole prompt."""
        with self.engine.engine_lock.take():
            self.engine.prefixes.forget()

    def session(self, path: str | Path | None = None) -> Session:
        """Return a session: a text that continues from call to call.

        Args:
            path: a file that `Session.save` wrote; None begins an empty session.

        Raises:
            UserError: the file belongs to another artifact, or is damaged.
        """
        session = Session(self)
        if path is not None:
            session.load(path)
        return session

    def stream(
        self,
        prompt: str | Any,
        *,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Callable[[int, Any], Sequence[int]] | None = None,
        generation_config: Any = None,
        tokenizer: Any = None,
        use_cache: bool = True,
        reuse_prefix: bool = False,
        adapter_names: Sequence[str] | None = None,
        assistant_model: LlamaForCausalLM | None = None,
        **settings: Any,
    ) -> Stream:
        """Continue one prompt as it is, without a chat template, and yield a Piece per new token.

        Args:
            prompt: text, or its token ids.

        The other arguments are those of `generate`. They are checked at once, before the first piece.

        Returns:
            The stream; its `cancel` ends the generation, from any thread.

        Raises:
            UserError: prompt or settings do not fit.
            TypeError: an unknown keyword.
        """
        arguments = ("prompt", *ARGUMENTS)
        settings = {**settings, "output_logprobs": True}
        callables = (kind_of_result(prompt), logits_processor, stopping_criteria, prefix_allowed_tokens_fn)
        call = self._call("stream", arguments, settings, generation_config, callables, use_cache, reuse_prefix)
        given = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        ids = prompt_ids(given, self.engine.vocab_size)
        config = call.config
        if len(ids) != 1 or config.num_return_sequences != 1 or config.num_beams != 1:
            raise UserError(
                f"stream() gives one answer to one prompt, token by token; {len(ids)} prompts, num_return_sequences "
                f"{config.num_return_sequences} and num_beams {config.num_beams} given. Use generate()"
            )
        call = replace(call, adapters=self._adapter_numbers(adapter_names, 1), draft=self._draft(assistant_model))
        _, rows, limits = prepare_prompts(ids, np.ones_like(ids), call.config, self.engine.vocab_size, self.artifact)
        return Stream(self._batch(call, rows, limits, 0), self.engine.engine_lock, self.tokenizer)

    def _run(
        self,
        call: GenerateCall,
        ids: np.ndarray,
        rows: list[np.ndarray],
        limits: list[int],
        kind: Convert,
        streamer: Streamer | None,
        timings: GenerationTimings,
    ) -> list[Batch]:
        """Run all rows, batch by batch. ids: the prompts [B, n], for the streamer, which gets arrays through `kind`."""
        batches = []
        with self.engine.engine_lock.take(call.cancelled):
            try:
                if streamer is not None:
                    streamer.put(kind(ids))
                for first in range(0, len(rows), self.engine.batch):
                    batch = self._batch(call, rows, limits, first)
                    batches.append(batch)
                    for picked in batch.decode(timings):
                        if streamer is not None:
                            streamer.put(kind(np.where(np.array(picked) < 0, call.config.padding or 0, picked)))
            finally:
                if streamer is not None:
                    streamer.end()
        return batches

    def _call(
        self,
        caller: str,
        arguments: Sequence[str],
        settings: dict[str, Any],
        base: Any,
        callables: tuple[Convert, Any, Any, Any],
        use_cache: bool,
        reuse_prefix: bool,
    ) -> GenerateCall:
        """Check the settings. callables: kind_of_result, logits_processor, stopping_criteria, prefix_allowed_..."""
        kind, processor, criterion, allowed = callables
        processors = as_callables("logits_processor", processor, kind)
        criteria = as_callables("stopping_criteria", criterion, kind)
        base = self.generation_config if base is None else GenerationConfig.of(base)
        config = base.completed(self.generation_config).updated(settings, arguments, caller)
        if config.max_time is not None:
            criteria.append(time_limit(config.max_time))
        if not use_cache:
            raise UserError("use_cache=False: the exported graphs always use the cache. Leave it out")
        seed = next_seed() if config.seed is None else config.seed
        prefix_allowed = None if allowed is None else lambda prompt, ids: allowed(prompt, kind(ids))
        return GenerateCall(config, processors, criteria, seed, bool(reuse_prefix), prefix_allowed)

    def _draft(self, assistant: LlamaForCausalLM | None) -> Guesser | None:
        """The draft model that assistant_model gives."""
        if assistant is None:
            return None
        if not isinstance(assistant, LlamaForCausalLM):
            kind = type(assistant).__name__
            raise UserError(f"assistant_model is a {kind}; needed: another model of LlamaForCausalLM.from_pretrained()")
        both = [one.tokenizer if one.artifact.file("tokenizer.json").is_file() else None for one in (self, assistant)]
        check_same_tokens(self.engine, assistant.engine, *both)
        return DraftModel(assistant.engine)

    def _batch(self, call: GenerateCall, rows: list[np.ndarray], limits: list[int], first: int) -> Batch:
        """The batch that begins with row `first`: as many rows as the engine has."""
        mine = slice(first, first + self.engine.batch)
        return Batch(self.engine, lambda: self.tokenizer, call, rows[mine], first, limits[mine])


# An artifact of any architecture: the graphs hold the differences.
AutoModelForCausalLM = MistralForCausalLM = Qwen2ForCausalLM = LlamaForCausalLM
