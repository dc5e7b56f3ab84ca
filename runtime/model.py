"""The model as Hugging Face users know it: from_pretrained, generate, stream."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from .artifact.manifest import Artifact
from .conversation.session import Session
from .conversation.transcript import Transcript, Transcripts
from .engine.engine import Engine
from .errors import UserError
from .generation.batch import Call, Wave, output
from .generation.beam_batch import BeamWave, beam_output
from .generation.config import GenerationConfig
from .generation.decode import Timings
from .generation.output import Answer, GenerateOutput, Streamer
from .generation.prompt import new_token_limit, prompt_ids, prompt_mask, prompt_rows
from .generation.sequences import join
from .generation.stopping import StoppingCriterion
from .generation.stream import Stream
from .generation.token_selector import LogitsProcessor
from .hf_keywords import check_placement, listed
from .progress import progress
from .text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]  # [{"role": ..., "content": ...}, ...]
# What generate() and stream() take beside settings.
ARGUMENTS = ("generation_config", "tokenizer", "use_cache", "reuse_prefix", "logits_processor", "stopping_criteria")


class LlamaForCausalLM:
    """A loaded artifact. One generation runs at a time; other threads wait their turn.

    generate() and stream() compute their whole prompt, so that the same call gives the same tokens. With reuse_prefix a
    prompt that begins with what the cache still holds, of the generations before, is computed from there on only: the
    tokens are then those of a fresh start up to rounding, for a prompt cut elsewhere into passes gives logits that
    differ by about 1e-6 of their range in float32, and 4e-3 where kernels quantize activations (int8 weights), as they
    do between prefill buckets too. Sessions and chats always go on from what is there.
    """

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self.artifact = artifact
        self.engine = engine
        self.generation_config = GenerationConfig.of(artifact)
        self.transcripts = Transcripts()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        device_id: int | None = None,
        show_progress: bool = False,
        show_native_log: bool = False,
        **hugging_face: Any,
    ) -> LlamaForCausalLM:
        """Load an artifact folder, as `make export` writes it.

        threads: CPU threads, all available ones when None. device_id: the NPU, for artifacts of Ascend targets; the
        first when None. show_progress: a line on standard error while it loads.
        show_native_log: let through what MindSpore Lite logs while loading, which otherwise shows on failure only.
        hugging_face: device, device_map, dtype and torch_dtype, where they ask for what the artifact was exported for.
        Raises UserError for a folder that is not a whole, unchanged artifact which this runtime can run, TypeError for
        an unknown keyword.
        """
        artifact = Artifact.open(path)
        check_placement("from_pretrained", hugging_face, artifact.manifest)
        size = sum(entry.bytes for entry in artifact.manifest.files()) / 1e6
        what = f"Loading {artifact.manifest.name} ({size:,.0f} MB)"
        with progress(what) if show_progress else nullcontext():
            return cls(artifact, Engine(artifact, threads, device_id=device_id, show_native_log=show_native_log))

    @property
    def config(self) -> SimpleNamespace:
        """The Hugging Face config as attributes."""
        return SimpleNamespace(**self.artifact.manifest.config)

    @property
    def device(self) -> str:
        """Where prompts are taken from and results given: "cpu", with an NPU too."""
        return "cpu"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer. `transformers.AutoTokenizer.from_pretrained(<artifact>)` works as well."""
        return Tokenizer.from_folder(self.artifact.path)

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        inputs: Any = None,
        streamer: Streamer | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: GenerationConfig | None = None,
        tokenizer: Any = None,
        use_cache: bool = True,
        reuse_prefix: bool = False,
        **settings: Any,
    ) -> np.ndarray | GenerateOutput:
        """Continue each prompt; returns int64 [B, n + new], prompts first, as Hugging Face's generate does.

        input_ids [B, n] (array, tensor or list), padded on either side; inputs is another name of it; attention_mask
        [B, n] of 0 and 1, or inferred from pad_token_id where that is not an eos id. settings: the fields of
        GenerationConfig; the defaults are those of generation_config, then the artifact's. A row ends with any id of
        eos_token_id, after max_new_tokens, at max_length, or where it fills the context, and is then filled with
        pad_token_id. More rows than the artifact's batch run in waves, each row as it would run alone. With
        num_return_sequences the answers to a prompt follow one another.

        streamer: `put` gets the prompts [B, n], then each step's tokens [B]; `end` follows. logits_processor,
        stopping_criteria: a callable or a list, called with numpy arrays (input_ids [rows, n], scores [rows, V]) wave
        by wave; with num_beams a criterion sees the candidates of one prompt. Beams take a row each, so num_beams is
        at most the artifact's batch, and prompts go batch // num_beams at a time. tokenizer: as Hugging Face wants it
        beside stop_strings; the artifact's own reads them. use_cache can only be True. reuse_prefix: compute only what
        the cache does not hold of the prompts.
        `cancel` ends it early, with what there is.
        Raises UserError for input that does not fit, TypeError for an unknown keyword.
        """
        arguments = ("input_ids", "attention_mask", "inputs", "streamer", *ARGUMENTS)
        callables = (listed("logits_processor", logits_processor), listed("stopping_criteria", stopping_criteria))
        call = self._call("generate", arguments, settings, generation_config, *callables, use_cache, reuse_prefix)
        if (input_ids is None) == (inputs is None):
            raise UserError("needed: one of input_ids and inputs, which is another name of it")
        ids, rows, limits = self._prepare(inputs if input_ids is None else input_ids, attention_mask, call.config)
        if call.config.num_beams > 1:
            if streamer is not None:
                raise UserError("a streamer does not go with num_beams: the texts are known at the end. Leave it out")
            return self._beams(call, ids, rows, limits)
        several = call.config.num_return_sequences
        ids = np.repeat(ids, several, axis=0)
        rows, limits = [row for row in rows for _ in range(several)], np.repeat(limits, several).tolist()
        if streamer is not None and len(rows) > self.engine.batch:
            raise UserError(
                f"a streamer sees one wave of rows, and {len(rows)} rows take several ({self.engine.batch} each). "
                "Give fewer prompts"
            )
        timings = Timings()
        waves = []
        with self.engine.turn.take(call.cancelled):
            try:
                if streamer is not None:
                    streamer.put(ids)
                for first in range(0, len(rows), self.engine.batch):
                    wave = self._wave(call, rows, limits, first)
                    waves.append(wave)
                    for picked in wave.decode(timings):
                        if streamer is not None:
                            filler = call.config.padding or 0
                            streamer.put(np.array([filler if token < 0 else token for token in picked]))
            finally:
                if streamer is not None:
                    streamer.end()
        new = [wave.texts.new(index) for wave in waves for index in range(len(wave.texts))]
        sequences = join(ids, new, call.config.padding)
        return output(sequences, waves, timings) if call.config.return_dict_in_generate else sequences

    def _beams(
        self, call: Call, ids: np.ndarray, rows: list[np.ndarray], limits: list[int]
    ) -> np.ndarray | GenerateOutput:
        config, timings = call.config, Timings()
        at_once = self.engine.batch // config.num_beams
        if at_once == 0:
            raise UserError(
                f"num_beams is {config.num_beams}; this artifact has {self.engine.batch} rows (batch), one a beam. "
                f"Export with `make export MODEL={self.artifact.manifest.source.model} BATCH={config.num_beams}`"
            )
        waves = [
            BeamWave(self.engine, lambda: self.tokenizer, call, rows[mine], first, limits[mine])
            for first in range(0, len(rows), at_once)
            for mine in [slice(first, first + at_once)]
        ]
        with self.engine.turn.take(call.cancelled):
            found = [beams for wave in waves for beams in wave.run(timings)]
        return beam_output(ids, waves, found, timings)

    def cancel(self) -> None:
        """End the generation that is running, if any, before its next pass; from any thread, or a signal handler.

        stream() then yields a last piece with finish_reason "cancelled"; generate() returns what it has. Ctrl-C raises
        KeyboardInterrupt out of either, as everywhere in Python. The model stays usable each time.
        """
        self.engine.turn.cancel()

    def forget(self) -> None:
        """Drop what the cache holds, so that the next generation computes its whole prompt."""
        with self.engine.turn.take():
            self.engine.prefixes.forget()

    def session(self, path: str | Path | None = None) -> Session:
        """A text that goes on from turn to turn: a new one, or one that `Session.save` wrote to `path`."""
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
        generation_config: GenerationConfig | None = None,
        tokenizer: Any = None,
        use_cache: bool = True,
        reuse_prefix: bool = False,
        **settings: Any,
    ) -> Stream:
        """Continue one prompt (text, or its token ids), yielding a Piece per new token. Arguments as in `generate`,
        and checked before the first piece is asked for. The stream's cancel() ends the generation, from any thread."""
        arguments = ("prompt", *ARGUMENTS)
        settings = {**settings, "output_logprobs": True}
        callables = (listed("logits_processor", logits_processor), listed("stopping_criteria", stopping_criteria))
        call = self._call("stream", arguments, settings, generation_config, *callables, use_cache, reuse_prefix)
        given = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        ids = prompt_ids(given, self.engine.vocab_size)
        config = call.config
        if len(ids) != 1 or config.num_return_sequences != 1 or config.num_beams != 1:
            raise UserError(
                f"stream() gives one answer to one prompt, token by token; {len(ids)} prompts, num_return_sequences "
                f"{config.num_return_sequences} and num_beams {config.num_beams} given. Use generate()"
            )
        _, rows, limits = self._prepare(ids, np.ones_like(ids), call.config)
        return Stream(self._wave(call, rows, limits, 0), self.engine.turn, self.tokenizer)

    def chat(self, messages: Messages, **settings: Any) -> Answer:
        """As `stream_chat`, at once. `messages.append(answer.message)` makes the conversation go on."""
        pieces = list(self.stream_chat(messages, **settings))
        last = pieces[-1]
        if last.finish_reason is None or last.timings is None:
            raise RuntimeError("the stream has not ended")
        return Answer("".join(piece.text for piece in pieces), last.finish_reason, last.timings)

    def stream_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Stream:
        """Answer a conversation, yielding a Piece per new token.

        messages: [{"role": "user", "content": "..."}, ...], the whole conversation, the oldest first; the artifact's
        chat template writes them as text, with `tools` and further variables (chat_template_kwargs) where it knows
        them. settings: as of `generate`, and checked before the first piece is asked for; where nothing limits the
        answer it may fill the context. Of a conversation that goes on from an earlier answer only the rest is computed.
        Raises UserError for messages that are none, that the template refuses, or that leave no room for an answer.
        """
        return self.stream_turn(self.turn(messages, tools, chat_template_kwargs), **settings)

    def turn(
        self, messages: Messages, tools: Sequence[Any] | None = None, variables: Mapping[str, Any] | None = None
    ) -> Transcript:
        """What `stream_chat` makes of its messages: their tokens, as they lie in the cache where they do."""
        return self.transcripts.begin(self.tokenizer, messages, {"tools": tools, **(variables or {})})

    def stream_turn(self, turn: Transcript, **settings: Any) -> Stream:
        """Stream the answer to a turn, which takes it down."""
        limits = ("max_new_tokens", "max_length")
        if all(settings.get(name) is None and getattr(self.generation_config, name) is None for name in limits):
            settings["max_new_tokens"] = self.engine.context
        stream = self.stream(turn.ids, **{"reuse_prefix": True, **settings})
        stream.behind = ()  # an answer is a text of its own
        stream.listeners.append(turn.heard)
        self.transcripts.keep(turn)
        return stream

    def _call(
        self,
        caller: str,
        arguments: Sequence[str],
        settings: dict[str, Any],
        base: GenerationConfig | None,
        processors: list[LogitsProcessor],
        criteria: list[StoppingCriterion],
        use_cache: bool,
        reuse_prefix: bool,
    ) -> Call:
        if base is None:
            base = self.generation_config
        elif not isinstance(base, GenerationConfig):
            raise UserError(f"generation_config is a {type(base).__name__}; needed: a edgellama.GenerationConfig")
        config = base.completed(self.generation_config).updated(settings, arguments, caller)
        if not use_cache:
            raise UserError("use_cache=False: the exported graphs always use the cache. Leave it out")
        seed = secrets.randbits(64) if config.seed is None else config.seed
        return Call(config, processors, criteria, seed, bool(reuse_prefix))

    def _wave(self, call: Call, rows: list[np.ndarray], limits: list[int], first: int) -> Wave:
        """Of rows `first` and the next, as many as the engine has rows for."""
        mine = slice(first, first + self.engine.batch)
        return Wave(self.engine, lambda: self.tokenizer, call, rows[mine], first, limits[mine])

    def _prepare(
        self, input_ids: Any, attention_mask: Any, config: GenerationConfig
    ) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
        """The prompts [B, n], each row's tokens, and how many may follow each."""
        ids = prompt_ids(input_ids, self.engine.vocab_size)
        rows = prompt_rows(ids, prompt_mask(ids, attention_mask, config))
        limits = [new_token_limit(config, ids.shape[1], len(row), self.artifact) for row in rows]
        return ids, rows, limits


# An artifact of any architecture: the graphs hold what sets them apart.
AutoModelForCausalLM = MistralForCausalLM = Qwen2ForCausalLM = LlamaForCausalLM
