"""pipeline("text-generation", model=ARTIFACT)(prompts): text in, text out, in the shapes of Hugging Face's pipeline."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .generation.config import FIELDS
from .generation.output import GenerateOutput
from .hf_keywords import check_placement
from .model import ARGUMENTS, LlamaForCausalLM, Messages
from .text.tokenizer import Tokenizer

TASK = "text-generation"
# What Hugging Face's text-generation pipeline takes where neither call nor generation_config.json says.
DEFAULTS: Mapping[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
# Settings of a call beside those of generate(): name -> default.
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
    # without effect here, where texts are neither cut nor padded nor read by other processes
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
    device: Any = None,
    device_map: Any = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    **settings: Any,
) -> TextGenerationPipeline:
    """Text to text, as transformers.pipeline makes it of a hub model.

    model: an artifact's folder, or a loaded model. tokenizer: another than the artifact's: the folder of one, or an
    object such as transformers' of it. threads, device_id, device, device_map, dtype, torch_dtype: as of
    `LlamaForCausalLM.from_pretrained`. settings: defaults of the calls.
    Raises UserError for a task other than "text-generation", or a folder that is no artifact; TypeError for an unknown
    keyword.
    """
    if task != TASK:
        raise UserError(f"task is {task!r}; this runtime has {TASK!r} only")
    if model is None:
        raise UserError("no model given. Pass model=FOLDER, as `make export` writes it")
    asked = {"device": device, "device_map": device_map, "dtype": dtype, "torch_dtype": torch_dtype}
    if isinstance(model, LlamaForCausalLM):
        check_placement("pipeline", asked, model.artifact.manifest)
    else:
        model = LlamaForCausalLM.from_pretrained(model, threads=threads, device_id=device_id, **asked)
    if isinstance(tokenizer, str | Path):
        tokenizer = Tokenizer.from_folder(tokenizer)
    return TextGenerationPipeline(model, tokenizer, **settings)


class TextGenerationPipeline:
    """Continues prompts, or answers chats."""

    task = TASK

    def __init__(self, model: LlamaForCausalLM, tokenizer: Any = None, **settings: Any) -> None:
        _known("pipeline", settings)
        self.model = model
        self.tokenizer: Any = model.tokenizer if tokenizer is None else tokenizer
        self.settings = settings

    def __call__(self, text_inputs: str | Sequence[Any] | Iterator[Any], **settings: Any) -> Any:
        """Continue a prompt, or answer a chat; or each of several.

        text_inputs: a prompt, a chat ([{"role": ..., "content": ...}, ...]), a list of either, or an iterator of
        either, whose results are then given as they are asked for, one by one. settings: those of
        generate(), and: return_full_text (default True: the prompt, or the chat's messages, before what is new),
        return_tensors (token ids instead of text), skip_special_tokens, add_special_tokens (to a prompt), prefix,
        stop_sequence (stop_strings), continue_final_message (of a chat; by default where the last one is the
        assistant's), tools and documents (of the chat template), batch_size (prompts that go together; all, if None).
        truncation can only be off: a prompt that does not fit is an error.

        Returns num_return_sequences dicts {"generated_text": ...} of a prompt or chat, a list of such lists of several.
        The text of a chat is its messages and the answer. With return_tensors {"generated_token_ids": [...]}.
        Defaults where nothing else says: 256 new tokens, sampled at temperature 0.7, as Hugging Face's.
        Raises UserError for input that does not fit, TypeError for an unknown keyword.
        """
        _known("pipeline()", settings)
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
        """DEFAULTS, less what the model's own generation_config.json or the call says otherwise."""
        path = self.model.artifact.file("generation_config.json")
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        said = {name for values in (stored, given) for name, value in values.items() if value is not None}
        found = {name: value for name, value in DEFAULTS.items() if name not in said}
        if "max_length" in said:
            found.pop("max_new_tokens", None)
        sampled = found.get("do_sample", given.get("do_sample", self.model.generation_config.do_sample))
        if not sampled:
            found.pop("temperature", None)
        return found

    def _batch_size(self, given: Any, call: Mapping[str, Any]) -> int | None:
        """Prompts that go together; None: all."""
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise UserError(f"batch_size is {given!r}; needed: a whole number, at least 1, or None")
        limit = call.get("max_length") or self.model.generation_config.max_length
        if given is None and limit is not None and call.get("max_new_tokens") is None:
            return 1  # it counts a prompt's own tokens, not those that a longer one beside it would add as padding
        return given

    def _ids(self, one: str | Messages, own: Mapping[str, Any]) -> list[int]:
        if isinstance(one, str):
            return list(self.tokenizer.encode(own["prefix"] + one, add_special_tokens=own["add_special_tokens"]))
        goes_on = _goes_on(one, own)
        if goes_on and not isinstance(one[-1].get("content"), str):
            raise UserError(f"the last message's content is {one[-1].get('content')!r}; needed: a text to continue")
        text = self._render(one, not goes_on, tools=own["tools"], documents=own["documents"])
        if goes_on:
            text = _cut_after(text, one[-1]["content"])
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _render(self, messages: Messages, add_generation_prompt: bool, **variables: Any) -> str:
        if hasattr(self.tokenizer, "render_chat"):
            return str(self.tokenizer.render_chat(messages, add_generation_prompt=add_generation_prompt, **variables))
        return str(  # transformers'
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
                records[index].append({"generated_text": _told(inputs[index], text, own)})
        return records

    def _new_text(self, prompt: list[int], new: list[int], skip_special_tokens: bool) -> str:
        """As Hugging Face's: what the text has more than the prompt's. By itself it might lose its first space."""
        before = self.tokenizer.decode(prompt, skip_special_tokens=skip_special_tokens)
        return str(self.tokenizer.decode([*prompt, *new], skip_special_tokens=skip_special_tokens))[len(before) :]


def _known(caller: str, settings: Iterable[str]) -> None:
    for name in settings:
        if name in NOT_HERE:
            raise UserError(f"{caller} takes no {name}: it returns text. Use the model's generate()")
        if name not in OWN and name not in GENERATE:
            nearest = difflib.get_close_matches(name, sorted({*OWN, *GENERATE}), n=1, cutoff=0.0)[0]
            raise TypeError(f"{caller} has no keyword {name!r}; the nearest is {nearest!r}")


def _is_chat(given: Any) -> bool:
    return isinstance(given, list | tuple) and bool(given) and all(isinstance(one, Mapping) for one in given)


def _goes_on(messages: Messages, own: Mapping[str, Any]) -> bool:
    """Whether the last message is to be continued, instead of answered."""
    if own["continue_final_message"] is None:
        return messages[-1].get("role") == "assistant"
    return bool(own["continue_final_message"])


def _cut_after(text: str, content: str) -> str:
    """A rendered chat up to the end of its last message's content, which templates may strip."""
    at = text.rfind(content.strip())
    if at < 0:
        raise UserError("the chat template changes the last message, so it cannot be continued. Give a user's message")
    whole = content.lstrip()
    return text[: at + len(whole if text.startswith(whole, at) else content.strip())]


def _told(given: str | Messages, new: str, own: Mapping[str, Any]) -> Any:
    if not own["return_full_text"]:
        return new
    if isinstance(given, str):
        return given + new
    messages = [dict(message) for message in given]
    if _goes_on(given, own):
        messages[-1]["content"] += new
    else:
        messages.append({"role": "assistant", "content": new})
    return messages
