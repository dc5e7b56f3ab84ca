"""`edgellama serve`: runs the endpoint until a signal ends it."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import re
import resource
import socket
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..cli.options import add_model, add_prompt_lookup, load, prompt_lookup
from ..errors import UserError, shown
from ..lora.config import folder_and_scale
from ..tools.choose import SYNTAXES

if TYPE_CHECKING:
    from ..model import LlamaForCausalLM

KEY_VARIABLE = "EDGELLAMA_API_KEY"
QUEUE, GRACE_SECONDS, CONNECTIONS = 64, 30.0, 512
TOOL_PARSERS = tuple(syntax.name for syntax in SYNTAXES)
POOLINGS = ("last", "mean", "cls")  # generation.scoring has the same; importing it here would slow every command
HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+|\[[0-9A-Fa-f:.]+\]")
ORIGIN = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
DESCRIPTORS = 128  # of this process besides its connections: the model, child processes, clients that are refused


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `serve`."""
    parser.description = (
        "Serve /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /v1/models, /health, "
        "/metrics and a chat page at /. "
        "As many answers run at once as the artifact has rows (export with BATCH=8 for eight); others wait. "
        "After Ctrl-C or SIGTERM the server finishes the running answers and ends. Needs the extra: "
        "pip install 'edgellama[serve]'"
    )
    add_model(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: %(default)s, this machine only"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes a free port")
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"bearer token that requests must have; default: ${KEY_VARIABLE}, else none"
    )
    parser.add_argument(
        "--queue", type=int, default=QUEUE, metavar="N", help="answers that may wait; default: %(default)s"
    )
    add_prompt_lookup(parser)
    parser.add_argument(
        "--cache-memory",
        type=int,
        metavar="MB",
        help="host memory for keys and values of conversations that no row holds, so that they go on without computing "
        "them again; default: a quarter of what is free once the model is loaded, at most 1000, and 0 on an NPU",
    )
    parser.add_argument(
        "--connections",
        type=int,
        metavar="N",
        help=f"clients that may be connected; default: {CONNECTIONS}, or what `ulimit -n` permits",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE_SECONDS,
        metavar="SECONDS",
        help="time for running answers to end; default: %(default)s",
    )
    parser.add_argument(
        "--sampling-defaults",
        choices=("openai", "artifact"),
        default="openai",
        help="settings of a request that has no temperature, top_p, top_k or min_p: those of OpenAI's API "
        "(temperature 1), or those of the artifact's generation_config.json. Default: %(default)s",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="use this chat template instead of the artifact's, for example one with tools",
    )
    parser.add_argument(
        "--tool-parser",
        metavar="NAME",
        help="how the model writes tool calls; default: as its chat template does. Names: " + ", ".join(TOOL_PARSERS),
    )
    parser.add_argument(
        "--alias", action="append", default=[], metavar="NAME", help="a further name of the model; may be repeated"
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that the Host header may have, such as that of a reverse proxy; may be repeated; * permits all",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME=FOLDER[:SCALE]",
        help="offer the model with the LoRA adapter in FOLDER as the model NAME; may be repeated; target cpu only",
    )
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a site whose pages may use this server, such as https://chat.example; may be repeated; * permits all",
    )
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        default=POOLINGS[0],
        help="how /v1/embeddings makes one vector of a text, if the request does not say. Default: %(default)s",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the server. Raises UserError for invalid options, missing libraries and an address that is not available."""
    if options.queue < 0:
        raise UserError(f"--queue is {options.queue}; needed: 0 or more")
    if options.cache_memory is not None and options.cache_memory < 0:
        raise UserError(f"--cache-memory is {options.cache_memory}; needed: 0 or more (megabytes)")
    lookup = prompt_lookup(options)
    connections = connection_limit(options.connections)
    if not 0 <= options.grace <= threading.TIMEOUT_MAX:  # this refuses nan, too
        raise UserError(f"--grace is {options.grace}; needed: 0 to {threading.TIMEOUT_MAX:,.0f} seconds")
    try:
        from .app import Service
        from .http_server import run_until_signal
    except ImportError as error:
        raise UserError(
            f"serving needs the library {error.name}, which is not installed. "
            'Install the extra: pip install "edgellama[serve]"'
        ) from error
    key = os.environ.get(KEY_VARIABLE) if options.api_key is None else options.api_key
    if options.tool_parser not in (None, *TOOL_PARSERS):
        raise UserError(f"--tool-parser is {shown(options.tool_parser)}; needed: one of {', '.join(TOOL_PARSERS)}")
    check_names(options.alias, options.allowed_host, options.cors)
    if key is not None and not key.strip():
        raise UserError(f"the API key is empty. Give one, or leave out --api-key and ${KEY_VARIABLE}")
    with listen(options.host, options.port) as listening:
        model, cache_memory = load_with_cache_memory(options)
        model = load(options)
        if lookup:
            _ = model.engine.head  # raises UserError for a target that cannot check guesses
        for text in options.lora:
            load_adapter(model, text)
        if options.chat_template is not None:
            model.tokenizer.use_chat_template(options.chat_template)
        service = Service(
            model,
            queue=options.queue,
            api_key=key,
            hosts=allowed_hosts(options.host, options.allowed_host),
            sampling=options.sampling_defaults,
            tool_parser=options.tool_parser,
            aliases=options.alias,
            origins=options.cors,
            pooling=options.pooling,
            cache_memory=cache_memory,
            prompt_lookup=lookup,
        )
        if not is_loopback(options.host) and key is None:
            print(
                f"warning: everyone who can reach {options.host} may use this server. Set a key with --api-key",
                file=sys.stderr,
            )
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        started = f"Serving {service.name} at {url(listening)} ({model.engine.batch} rows). Ctrl-C ends it"
        run_until_signal(service, listening, options.grace, connections, started)


def load_with_cache_memory(options: argparse.Namespace) -> tuple[LlamaForCausalLM, int]:
    """The model, and the bytes of --cache-memory. Raises UserError if both together do not fit."""
    from ..artifact.manifest import Artifact
    from ..engine.memory import check_cache_memory, default_cache_memory

    if options.cache_memory is None:
        model = load(options)
        return model, default_cache_memory(model.artifact.manifest)
    cache_memory = options.cache_memory * 1_000_000
    artifact = Artifact.open(options.artifact, check="sizes", weights_later=True)
    check_cache_memory(artifact, options.weights_memory, cache_memory)
    return load(options), cache_memory


def load_adapter(model: LlamaForCausalLM, text: str) -> None:
    """Load the adapter that NAME=FOLDER[:SCALE] names. Raises UserError if it has another form or does not fit."""
    name, equals, place = text.partition("=")
    if not equals or not name.strip() or not name.isprintable():
        raise UserError(f"--lora is {shown(text)}; needed: NAME=FOLDER or NAME=FOLDER:SCALE, such as style=./style:0.5")
    folder, scale = folder_and_scale(place)
    model.load_adapter(folder, name, scale=scale)


def check_names(aliases: Sequence[str], hosts: Sequence[str], origins: Sequence[str]) -> None:
    """Raise UserError for an alias, a host name or an origin that no request can have."""
    if any(not alias.strip() or not alias.isprintable() for alias in aliases):
        raise UserError("an --alias is empty or has control characters. Give a name such as gpt-4o-mini")
    for host in hosts:
        if host != "*" and not HOST.fullmatch(host):
            raise UserError(f"--allowed-host is {shown(host)}; needed: a name or an address without port, or *")
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise UserError(f"--cors is {shown(origin)}; needed: an origin such as https://chat.example:8443, or *")


def allowed_hosts(listening: str, allowed: Sequence[str]) -> set[str] | None:
    """The accepted names in the Host header; None accepts every name.

    Args:
        listening: the address of --host.
        allowed: the names of --allowed-host.
    """
    if "*" in allowed or not (allowed or is_loopback(listening)):
        return None
    return {"localhost", "127.0.0.1", "::1", listening.lower(), *(name.lower().strip("[]") for name in allowed)}


def connection_limit(given: int | None) -> int:
    """The limit of open connections. Raises UserError if this process may not have that many descriptors."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = sys.maxsize if files == resource.RLIM_INFINITY else files - DESCRIPTORS
    if given is None:
        return max(1, min(CONNECTIONS, most))
    if not 1 <= given <= most:
        raise UserError(
            f"--connections is {given}; needed: 1 to {most:,}, because this process may have {files:,} open files. "
            "Raise that limit with ulimit -n"
        )
    return given


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError if the address is not available."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host} port {port} ({error}). Give another --host or --port") from error


def url(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
