"""pipeline("text-generation", model=ARTIFACT)(prompts): text to text, with the results of Hugging Face's pipeline."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .conversation.methods import Messages
from .errors import UserError
from .generation.config import FIELDS
from .generation.output import GenerateOutput
from .hf_keywords import check_placement
from .model import ARGUMENTS, LlamaForCausalLM
from .text.tokenizer import Tokenizer

TASK = "text-generation"
# The defaults of Hugging Face's text-generation pipeline if neither the call nor generation_config.json gives a value.
DEFAULTS: Mapping[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
# Settings of a call besides those of generate(): name -> default.
OWN: Mapping[str, Any] = {
    "return_full_text": True,
    "return_tensors": False,
    "skip_special_tokens": True,
    "add_special_tokens": True,
    "prefix": "",
    "stop_sequence": None,
    "continue_final_message": None,
    "tools": None,
    "documents": None,
    "batch_size": None,
    # without effect: this pipeline does not truncate, pad, or read texts in other processes
    "truncation": None,
    "padding": None,
    "clean_up_tokenization_spaces": None,
    "num_workers": None,
}
NOT_HERE = ("return_dict_in_generate", "output_scores", "output_logits", "output_logprobs")
GENERATE = (FIELDS - set(NOT_HERE)) | {"streamer", *ARGUMENTS}


def pipeline(
    task: str = TASK,
    model: str | Path | LlamaForCausalLM | None = None,
    tokenizer: Any = None,
    *,
    threads: int | None = None,
    device_id: int | None = None,
    check: str = "once",
    weights_memory: str = "copy",
    device: Any = None,
    device_map: Any = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    **settings: Any,
) -> TextGenerationPipeline:
    """Return a text-generation pipeline for an artifact, as transformers.pipeline does for a hub model.

    Args:
        task: only "text-generation" is possible.
        model: an artifact folder, or a loaded model.
        tokenizer: replaces the artifact's: a folder, or an object such as a transformers tokenizer.
        threads, device_id, check, weights_memory, device, device_map, dtype, torch_dtype: as in
            `LlamaForCausalLM.from_pretrained`; of no effect on a loaded model, besides the check of the last four.
        settings: defaults of the calls.

    Raises:
        UserError: another task, or a folder that is no artifact.
        TypeError: an unknown keyword.
    """
    if task != TASK:
        raise UserError(f"task is {task!r}; this runtime has {TASK!r} only")
    if model is None:
        raise UserError("no model given. Pass model=FOLDER, as `make export` writes it")
    placement = {"device": device, "device_map": device_map, "dtype": dtype, "torch_dtype": torch_dtype}
    if isinstance(model, LlamaForCausalLM):
        check_placement("pipeline", placement, model.artifact.manifest)
    else:
        model = LlamaForCausalLM.from_pretrained(
            model, threads=threads, device_id=device_id, check=check, weights_memory=weights_memory, **placement
        )
    if isinstance(tokenizer, str | Path):
        tokenizer = Tokenizer.from_folder(tokenizer)
    return TextGenerationPipeline(model, tokenizer, **settings)


class TextGenerationPipeline:
    """Continues prompts, or answers chats.

    Attributes:
        model: generates.
        tokenizer: encodes and decodes; the model's own by default.
        settings: defaults of the calls.
    """

    task = TASK

    def __init__(self, model: LlamaForCausalLM, tokenizer: Any = None, **settings: Any) -> None:
        _check_names("pipeline", settings)
        self.model = model
        self.tokenizer: Any = model.tokenizer if tokenizer is None else tokenizer
        self.settings = settings

    def __call__(self, text_inputs: str | Sequence[Any] | Iterator[Any], **settings: Any) -> Any:
        """Continue a prompt, or answer a chat; or several of them.

        Args:
            text_inputs: a prompt, a chat ([{"role": ..., "content": ...}, ...]), a list of either, or an iterator of
                either; the results of an iterator are computed one by one.
            settings: those of generate(), by default 256 new tokens, sampled at temperature 0.7, as Hugging Face's
                pipeline does; and:

                - return_full_text: put the prompt, or the chat's messages, before the new text (default True)
                - return_tensors: return token ids instead of text
                - skip_special_tokens: leave special tokens out of the text (default True)
                - add_special_tokens: add special tokens such as bos to a prompt (default True)
                - prefix: text in front of a prompt
                - stop_sequence: another name of stop_strings
                - continue_final_message: continue a chat's last message; by default if it is the assistant's
                - tools, documents: for the chat template
                - batch_size: prompts that run together; None takes all
                - truncation: must be off; a prompt that does not fit is an error

        Returns:
            For a prompt or chat num_return_sequences dictionaries {"generated_text": ...}; for several a list of such
            lists. The text of a chat is its messages and the answer. With return_tensors the dictionaries are
            {"generated_token_ids": [...]}.

        Raises:
            UserError: input or settings do not fit.
            TypeError: an unknown keyword.
        """
        _check_names("pipeline()", settings)
        if isinstance(text_inputs, Iterator):
            return (self(one, **settings) for one in text_inputs)
        given = {**OWN, **self.settings, **settings}
        own = {name: given.pop(name) for name in OWN}
        if own["truncation"]:
            raise UserError("truncation=True: a cut prompt is another prompt. Leave it out, and cut the text yourself")
        if own["stop_sequence"] is not None:
            given["stop_strings"] = own["stop_sequence"]
        several = isinstance(text_inputs, list | tuple) and not _is_chat(text_inputs)
        inputs = list(text_inputs) if several else [text_inputs]
        if not inputs or not all(isinstance(one, str) or _is_chat(one) for one in inputs):
            raise UserError(
                f"text_inputs is {str(text_inputs)[:80]!r}; needed: a text, a list of messages "
                '({"role": ..., "content": ...}), or a list of either'
            )
        call = {**self._defaults(given), **given}
        prompts = [self._ids(one, own) for one in inputs]
        size = self._batch_size(own["batch_size"], call) or len(prompts)
        results = []
        for first in range(0, len(prompts), size):
            results += self._continue(inputs[first : first + size], prompts[first : first + size], call, own)
        return results if several else results[0]

    def _defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return DEFAULTS without the names that the model's generation_config.json or the call gives."""
        names = self.model.generation_config.given | {name for name, value in given.items() if value is not None}
        defaults = {name: value for name, value in DEFAULTS.items() if name not in names}
        if "max_length" in names:
            defaults.pop("max_new_tokens", None)
        sampled = defaults.get("do_sample", given.get("do_sample", self.model.generation_config.do_sample))
        if not sampled:
            defaults.pop("temperature", None)
        return defaults

    def _batch_size(self, given: Any, call: Mapping[str, Any]) -> int | None:
        """Return how many prompts run together; None means all."""
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise UserError(f"batch_size is {given!r}; needed: a whole number, at least 1, or None")
        limit = call.get("max_length") or self.model.generation_config.max_length
        if given is None and limit is not None and call.get("max_new_tokens") is None:
            return 1  # max_length counts a prompt's own tokens, not the padding that a longer prompt beside it adds
        return given

    def _ids(self, one: str | Messages, own: Mapping[str, Any]) -> list[int]:
        if isinstance(one, str):
            return list(self.tokenizer.encode(own["prefix"] + one, add_special_tokens=own["add_special_tokens"]))
        continues = _continues_last(one, own)
        if continues and not isinstance(one[-1].get("content"), str):
            raise UserError(f"the last message's content is {one[-1].get('content')!r}; needed: a text to continue")
        text = self._render(one, not continues, tools=own["tools"], documents=own["documents"])
        if continues:
            text = _cut_after(text, one[-1]["content"])
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _render(self, messages: Messages, add_generation_prompt: bool, **variables: Any) -> str:
        if hasattr(self.tokenizer, "render_chat"):
            return str(self.tokenizer.render_chat(messages, add_generation_prompt=add_generation_prompt, **variables))
        return str(  # a transformers tokenizer
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
            )
        )

    def _continue(
        self, inputs: Sequence[Any], prompts: Sequence[list[int]], call: dict[str, Any], own: Mapping[str, Any]
    ) -> list[list[dict[str, Any]]]:
        width = max(len(prompt) for prompt in prompts)
        ids = np.zeros((len(prompts), width), np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
        output = self.model.generate(ids, mask, **call, return_dict_in_generate=True)
        if not isinstance(output, GenerateOutput):
            raise TypeError(f"generate() returned {type(output).__name__}")
        each = len(output.sequences) // len(prompts)
        records: list[list[dict[str, Any]]] = [[] for _ in prompts]
        for row, (sequence, count) in enumerate(zip(output.sequences, output.new_tokens, strict=True)):
            index = row // each
            new = sequence[width : width + count]
            if own["return_tensors"]:
                records[index].append({"generated_token_ids": [*prompts[index], *new.tolist()]})
            else:
                text = self._new_text(prompts[index], new.tolist(), own["skip_special_tokens"])
                records[index].append({"generated_text": _generated_text(inputs[index], text, own)})
        return records

    def _new_text(self, prompt: list[int], new: list[int], skip_special_tokens: bool) -> str:
        """Return the text behind the prompt's, as Hugging Face does; decoded alone it might lose its first space."""
        before = self.tokenizer.decode(prompt, skip_special_tokens=skip_special_tokens)
        return str(self.tokenizer.decode([*prompt, *new], skip_special_tokens=skip_special_tokens))[len(before) :]


def _check_names(caller: str, settings: Iterable[str]) -> None:
    for name in settings:
        if name in NOT_HERE:
            raise UserError(f"{caller} takes no {name}: it returns text. Use the model's generate()")
        if name not in OWN and name not in GENERATE:
            nearest = difflib.get_close_matches(name, sorted({*OWN, *GENERATE}), n=1, cutoff=0.0)[0]
            raise TypeError(f"{caller} has no keyword {name!r}; the nearest is {nearest!r}")


def _is_chat(given: Any) -> bool:
    """Whether this is a list of messages."""
    return isinstance(given, list | tuple) and bool(given) and all(isinstance(one, Mapping) for one in given)


def _continues_last(messages: Messages, own: Mapping[str, Any]) -> bool:
    """Whether to continue the last message instead of answering it."""
    if own["continue_final_message"] is None:
        return messages[-1].get("role") == "assistant"
    return bool(own["continue_final_message"])


def _cut_after(text: str, content: str) -> str:
    """Return a rendered chat up to the end of its last message's content, which templates may strip."""
    at = text.rfind(content.strip())
    if at < 0:
        raise UserError("the chat template changes the last message, so it cannot be continued. Give a user's message")
    whole = content.lstrip()
    return text[: at + len(whole if text.startswith(whole, at) else content.strip())]


def _generated_text(given: str | Messages, new: str, own: Mapping[str, Any]) -> Any:
    """Return the new text, with return_full_text behind the prompt or as a message behind the chat's messages."""
    if not own["return_full_text"]:
        return new
    if isinstance(given, str):
        return given + new
    messages = [dict(message) for message in given]
    if _continues_last(given, own):
        messages[-1]["content"] += new
    else:
        messages.append({"role": "assistant", "content": new})
    return messages
