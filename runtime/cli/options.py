"""Command-line options that several commands share: each is declared here once.

The `add_...` functions declare options. `load`, `sampling_settings` and `grammar` turn the parsed options into a model,
settings of generate() and a logits processor.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.device_option import add_device
from ..engine.weights_memory import add_weights_memory
from ..errors import UserError

if TYPE_CHECKING:
    from ..grammar import Grammar
    from ..model import LlamaForCausalLM


def add_artifact(command: argparse.ArgumentParser) -> None:
    """Declare the positional argument ARTIFACT."""
    command.add_argument("artifact", help="folder written by `make export`")


def add_threads(command: argparse.ArgumentParser) -> None:
    """Declare --threads."""
    command.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: all available")


def add_model(command: argparse.ArgumentParser) -> None:
    """Declare the artifact and everything else that `load` reads."""
    add_artifact(command)
    add_threads(command)
    add_device(command)
    add_check(command)
    add_weights_memory(command)


def add_check(command: argparse.ArgumentParser) -> None:
    """Declare --no-check."""
    command.add_argument(
        "--no-check",
        action="store_true",
        help="do not hash the weights when they are loaded for the first time, or have changed",
    )


def check(options: argparse.Namespace) -> str:
    """Return the argument `check` of Artifact.open that the option of `add_check` means."""
    return "sizes" if options.no_check else "once"


def load(options: argparse.Namespace) -> LlamaForCausalLM:
    """Load the model that the options of `add_model` name. Writes a progress line to standard error."""
    from ..model import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(
        options.artifact,
        threads=options.threads,
        device_id=options.device_id,
        check=check(options),
        weights_memory=options.weights_memory,
        show_progress=True,
        show_native_log=options.debug,
    )


def add_lora(command: argparse.ArgumentParser) -> None:
    """Declare --lora, which `adapt` reads."""
    command.add_argument(
        "--lora",
        metavar="FOLDER[:SCALE]",
        help="use the LoRA adapter in this folder (PEFT), multiplied by SCALE; artifacts of the cpu target only",
    )


def adapt(model: LlamaForCausalLM, options: argparse.Namespace) -> None:
    """Load the adapter of --lora, if it is given. Raises UserError if it does not fit."""
    if options.lora is not None:
        from ..lora.config import folder_and_scale

        folder, scale = folder_and_scale(options.lora)
        model.load_adapter(folder, scale=scale)


def add_sampling(command: argparse.ArgumentParser) -> None:
    """Declare the options that become settings of stream(). A setting that is not given keeps the artifact's value."""
    group = command.add_argument_group(
        "sampling", "Defaults are those of the artifact's generation_config.json. Naming one of these samples."
    )
    group.add_argument(
        "--do-sample", action=argparse.BooleanOptionalAction, help="draw tokens, or take the most likely one"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the most likely tokens of total probability P"
    )
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens; 0 turns it off")
    group.add_argument(
        "--min-p", type=float, metavar="P", help="draw from tokens at least P times as likely as the most likely one"
    )
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    command.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1: repeat less of the earlier tokens"
    )
    add_prompt_lookup(command)
    command.add_argument("--stop", action="append", metavar="TEXT", help="end at this text; may be repeated")


def add_prompt_lookup(command: argparse.ArgumentParser) -> None:
    """Declare --prompt-lookup."""
    command.add_argument(
        "--prompt-lookup",
        type=int,
        metavar="N",
        help="guess up to N tokens (at most 7) from what the text says earlier, and check them in one pass: the same "
        "answer, sooner if it repeats parts of the prompt; target cpu",
    )


def prompt_lookup(options: argparse.Namespace) -> int:
    """Return the value of --prompt-lookup, 0 if it is not given. Raises UserError for less than 1."""
    if options.prompt_lookup is not None and options.prompt_lookup < 1:
        raise UserError(f"--prompt-lookup is {options.prompt_lookup}; needed: a whole number, at least 1")
    return int(options.prompt_lookup or 0)


def sampling_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings for stream() that the sampling options give.

    Any of --temperature, --top-p, --top-k, --min-p and --seed turns sampling on; --temperature 0 turns it off.
    Raises UserError for --temperature 0 with --do-sample.
    """
    names = ("temperature", "top_p", "top_k", "min_p", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    do_sample = options.do_sample
    if given.get("temperature") == 0:
        if do_sample:
            raise UserError("--temperature 0 takes the most likely token, but --do-sample draws one. Drop one of them")
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
        "prompt_lookup_num_tokens": options.prompt_lookup,
    }


def add_grammar(command: argparse.ArgumentParser) -> None:
    """Declare the options that become a logits processor."""
    group = command.add_argument_group("constrained output", "Needs the extra: pip install 'edgellama[grammar]'")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--json-schema", metavar="FILE", help="answer with JSON that matches this schema")
    either.add_argument("--regex", metavar="PATTERN", help="answer with text that matches the whole PATTERN")


def grammar(options: argparse.Namespace, model: LlamaForCausalLM) -> Grammar | None:
    """The logits processor for --json-schema or --regex; None without them.

    Raises UserError for a file that cannot be read, and for an invalid schema or pattern.
    """
    if options.json_schema is None and options.regex is None:
        return None
    from ..grammar import JsonSchema, Regex

    if options.regex is not None:
        return Regex(options.regex, model, "--regex")
    path = Path(options.json_schema)
    try:
        schema = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--json-schema {path}: cannot be read ({error})") from error
    return JsonSchema(schema, model, f"--json-schema {path}")
