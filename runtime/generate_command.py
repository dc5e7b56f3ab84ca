"""`python -m runtime generate`: answer one prompt, streamed or as JSON."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from runtime.errors import UserError
from runtime.model import LlamaForCausalLM
from runtime.model_options import add_model, load
from runtime.output import Piece
from runtime.progress import progress
from runtime.sampling_options import add_grammar, add_sampling, grammar, sampling

NEW_TOKENS = 256  # generous for an answer, short enough to wait for


def add_parser(commands: Any) -> None:
    """Add the command to the runtime's command line."""
    generate = commands.add_parser(
        "generate",
        help="answer one prompt",
        description="Answer one prompt, streaming the text. An artifact with a chat template gets the prompt as a user "
        "message; --raw continues the text as it is.",
    )
    add_model(generate)
    generate.add_argument("--prompt", required=True, help="the text; - reads it from standard input")
    generate.add_argument("--system", help="a system message for the chat template")
    generate.add_argument("--raw", action="store_true", help="no chat template: continue the prompt as plain text")
    generate.add_argument("--max-new-tokens", type=int, default=NEW_TOKENS, metavar="N", help="default: %(default)s")
    add_sampling(generate)
    add_grammar(generate)
    generate.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    generate.set_defaults(run=run_generate)


def run_generate(options: argparse.Namespace) -> None:
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not prompt.strip():
        raise UserError("the prompt is empty. Give some text: --prompt TEXT")
    began = time.perf_counter()
    model = load(options)
    loaded = time.perf_counter() - began
    ids = prompt_ids(model, prompt, options.system, options.raw)
    constraint = grammar(options, model)
    pieces = model.stream(ids, max_new_tokens=options.max_new_tokens, logits_processor=constraint, **sampling(options))
    if not continues(model, options.system, options.raw):
        pieces.behind = ()
    if options.json:
        print(json.dumps(report(list(pieces), ids, loaded), ensure_ascii=False), flush=True)
    else:
        show(pieces, loaded, len(ids))


def prompt_ids(model: LlamaForCausalLM, prompt: str, system: str | None, raw: bool) -> list[int]:
    """Token ids of the prompt: through the chat template where there is one, unless `raw`."""
    if continues(model, system, raw):
        if system is not None:
            raise UserError("--system goes with a chat template, and --raw leaves it out. Drop one of them")
        return model.tokenizer.encode(prompt)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return model.tokenizer.encode_chat([*messages, {"role": "user", "content": prompt}])


def continues(model: LlamaForCausalLM, system: str | None, raw: bool) -> bool:
    """Whether the answer goes on with the prompt's text, instead of being a message of its own."""
    return raw or (model.tokenizer.chat_template is None and system is None)


def show(pieces: Iterator[Piece], loaded: float, prompt_tokens: int) -> None:
    """Print the text as it comes, then one line of figures on standard error."""
    with progress(f"Reading the prompt ({prompt_tokens:,} tokens)", plain=False):
        first = next(pieces)
    for piece in itertools.chain([first], pieces):
        print(piece.text, end="", flush=True)
    print(flush=True)
    times = figures(piece, loaded)
    print(
        f"[{piece.finish_reason}; load {times['load_s']:.1f} s; prefill {times['prompt_tokens']} tokens in "
        f"{times['prefill_ms']:.0f} ms; decode {times['decode_ms_per_token'] or 0:.1f} ms/token]",
        file=sys.stderr,
    )


def report(pieces: Sequence[Piece], prompt: Sequence[int], loaded: float) -> dict[str, Any]:
    """What --json prints. `ids` are the new tokens, the eos that ended them included; `text` leaves it out."""
    last = pieces[-1]
    return {
        "prompt_ids": list(prompt),
        "ids": [piece.id for piece in pieces if piece.id is not None],
        "text": "".join(piece.text for piece in pieces),
        "finish_reason": last.finish_reason,
        "timings": figures(last, loaded),
    }


def figures(last: Piece, loaded: float) -> dict[str, float | int | None]:
    """Timings of a finished stream; decode_ms_per_token is null where the prefill's token was the only one."""
    timings = last.timings
    if timings is None:
        raise ValueError("the stream has not ended")
    steps = timings.decode_steps
    return {
        "load_s": round(loaded, 3),
        "prompt_tokens": timings.prompt_tokens,
        "prefill_ms": round(timings.prefill * 1e3, 3),
        "decode_tokens": steps,
        "decode_ms_per_token": round(timings.decode / steps * 1e3, 3) if steps else None,
    }
