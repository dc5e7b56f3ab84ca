"""`edgellama generate`: answer one prompt, streamed as text or printed as JSON."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import UserError
from ..generation.output import Piece
from ..model import LlamaForCausalLM
from ..progress import progress
from .options import adapt, add_grammar, add_lora, add_model, add_sampling, grammar, load, sampling_settings

NEW_TOKENS = 256  # long enough for an answer, short enough to wait for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `generate`."""
    parser.description = (
        "Answer one prompt and stream the text. With an artifact that has a chat template, the prompt is a "
        "user message; --raw continues the prompt as plain text instead."
    )
    add_model(parser)
    add_lora(parser)
    parser.add_argument("--prompt", required=True, help="the text; - reads it from standard input")
    parser.add_argument("--system", help="a system message for the chat template")
    parser.add_argument("--raw", action="store_true", help="no chat template: continue the prompt as plain text")
    parser.add_argument("--max-new-tokens", type=int, default=NEW_TOKENS, metavar="N", help="default: %(default)s")
    add_sampling(parser)
    add_grammar(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    parser.set_defaults(run=run_generate)


def run_generate(options: argparse.Namespace) -> None:
    """Run the command. Raises UserError for an empty prompt and for options that do not fit the artifact."""
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not prompt.strip():
        raise UserError("the prompt is empty. Give some text: --prompt TEXT")
    start = time.perf_counter()
    model = load(options)
    adapt(model, options)
    load_seconds = time.perf_counter() - start
    ids = prompt_ids(model, prompt, options.system, options.raw)
    pieces = model.stream(
        ids,
        max_new_tokens=options.max_new_tokens,
        logits_processor=grammar(options, model),
        **sampling_settings(options),
    )
    if not is_continuation(model, options.system, options.raw):
        pieces.prefix_ids = ()
    if options.json:
        print(json.dumps(report(list(pieces), ids, load_seconds), ensure_ascii=False), flush=True)
    else:
        show(pieces, load_seconds, len(ids))


def prompt_ids(model: LlamaForCausalLM, prompt: str, system: str | None, raw: bool) -> list[int]:
    """Token ids of the prompt. Applies the chat template if the artifact has one and `raw` is false.

    Raises UserError for a system message with `raw`, or with an artifact without a chat template.
    """
    if is_continuation(model, system, raw):
        if system is not None:
            raise UserError("--system goes with a chat template, and --raw leaves it out. Drop one of them")
        return model.tokenizer.encode(prompt)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return model.tokenizer.encode_chat([*messages, {"role": "user", "content": prompt}])


def is_continuation(model: LlamaForCausalLM, system: str | None, raw: bool) -> bool:
    """Whether the answer continues the prompt's text. If false, the answer is a separate message."""
    return raw or (model.tokenizer.chat_template is None and system is None)


def show(pieces: Iterator[Piece], load_seconds: float, prompt_tokens: int) -> None:
    """Print the text while it is generated, then one line of timings on standard error."""
    with progress(f"Reading the prompt ({prompt_tokens:,} tokens)", plain=False):
        first = next(pieces)
    for piece in itertools.chain([first], pieces):
        print(piece.text, end="", flush=True)
    print(flush=True)
    times = timing_report(piece, load_seconds)
    print(
        f"[{piece.finish_reason}; load {times['load_s']:.1f} s; prefill {times['prompt_tokens']} tokens in "
        f"{times['prefill_ms']:.0f} ms; decode {times['decode_ms_per_token'] or 0:.1f} ms/token]",
        file=sys.stderr,
    )


def report(pieces: Sequence[Piece], prompt: Sequence[int], load_seconds: float) -> dict[str, Any]:
    """The object that --json prints. `ids` are the new tokens, including a final eos; `text` leaves the eos out."""
    last = pieces[-1]
    return {
        "prompt_ids": list(prompt),
        "ids": [piece.id for piece in pieces if piece.id is not None],
        "text": "".join(piece.text for piece in pieces),
        "finish_reason": last.finish_reason,
        "timings": timing_report(last, load_seconds),
    }


def timing_report(last: Piece, load_seconds: float) -> dict[str, float | int | None]:
    """Timings of a finished stream, in seconds and milliseconds as the keys say.

    decode_ms_per_token is None if the prefill gave the only new token. Raises ValueError if `last` is not the last
    piece of its stream.
    """
    timings = last.timings
    if timings is None:
        raise ValueError("the stream has not ended")
    steps = timings.decode_steps + timings.accepted_tokens  # tokens after the first
    return {
        "load_s": round(load_seconds, 3),
        "prompt_tokens": timings.prompt_tokens,
        "prefill_ms": round(timings.prefill * 1e3, 3),
        "decode_tokens": steps,
        "decode_ms_per_token": round(timings.decode / steps * 1e3, 3) if steps else None,
    }
