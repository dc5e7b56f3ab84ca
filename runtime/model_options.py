"""Command-line options that say which model to load and how, shared by the commands that answer."""

from __future__ import annotations

import argparse

from runtime.model import LlamaForCausalLM


def add_model(command: argparse.ArgumentParser) -> None:
    """The artifact, and what `load` needs to know beside it."""
    command.add_argument("artifact", help="folder written by `make export`")
    command.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: all available")
    command.add_argument("--device-id", type=int, metavar="N", help="NPU, for artifacts of Ascend targets; default: 0")
    command.add_argument("--debug", action="store_true", help="show tracebacks and what native code logs")


def load(options: argparse.Namespace) -> LlamaForCausalLM:
    """The model that the options name, with a line on standard error while it loads."""
    return LlamaForCausalLM.from_pretrained(
        options.artifact,
        threads=options.threads,
        device_id=options.device_id,
        show_progress=True,
        show_native_log=options.debug,
    )
