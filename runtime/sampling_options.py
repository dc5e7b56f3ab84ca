"""Command-line options that become settings of generate() and stream(), shared by the commands that answer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError

if TYPE_CHECKING:
    from runtime.grammar import Grammar
    from runtime.model import LlamaForCausalLM


def add_sampling(command: argparse.ArgumentParser) -> None:
    """Options that become settings of stream(); one that is left out leaves the artifact's default."""
    group = command.add_argument_group(
        "sampling", "Defaults are those of the artifact's generation_config.json. Naming one of these samples."
    )
    group.add_argument("--do-sample", action=argparse.BooleanOptionalAction, help="draw tokens, or take the likeliest")
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token")
    group.add_argument("--top-p", type=float, metavar="P", help="from the likeliest tokens of total probability P")
    group.add_argument("--top-k", type=int, metavar="K", help="from the K likeliest tokens; 0 turns it off")
    group.add_argument("--min-p", type=float, metavar="P", help="from tokens at least P times as likely as the first")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    command.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: less of what was there before")
    command.add_argument("--stop", action="append", metavar="TEXT", help="end at this text; may be given again")


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the options ask for. Naming how to sample is asking to sample; temperature 0 asks not to."""
    names = ("temperature", "top_p", "top_k", "min_p", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    do_sample = options.do_sample
    if given.get("temperature") == 0:
        if do_sample:
            raise UserError("--temperature 0 takes the likeliest token, and --do-sample draws. Drop one of them")
        do_sample = False
    elif given and do_sample is None:
        do_sample = True
    if do_sample is False:
        given = {}
    return {
        **given,
        "do_sample": do_sample,
        "repetition_penalty": options.repetition_penalty,
        "stop_strings": options.stop,
    }


def add_grammar(command: argparse.ArgumentParser) -> None:
    """Options that become a logits processor."""
    group = command.add_argument_group("constrained output", "Needs the extra: pip install 'edgellama[grammar]'")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--json-schema", metavar="FILE", help="answer in JSON that this schema describes")
    either.add_argument("--regex", metavar="PATTERN", help="answer with text that matches the whole PATTERN")


def grammar(options: argparse.Namespace, model: LlamaForCausalLM) -> Grammar | None:
    """The logits processor that the options ask for. Raises UserError for a file or a pattern that is none."""
    if options.json_schema is None and options.regex is None:
        return None
    from runtime.grammar import JsonSchema, Regex

    if options.regex is not None:
        return Regex(options.regex, model, "--regex")
    path = Path(options.json_schema)
    try:
        schema = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--json-schema {path}: cannot be read ({error})") from error
    return JsonSchema(schema, model, f"--json-schema {path}")
