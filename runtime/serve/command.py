"""`python -m runtime serve`: the endpoint until a signal ends it."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any

from runtime.cli.options import add_model, load
from runtime.errors import UserError

KEY_VARIABLE = "EDGELLAMA_API_KEY"
QUEUE, GRACE = 64, 30.0
UNREAD = 5  # seconds that a client may leave the end of its answer unread while the server ends


def add_parser(commands: Any) -> None:
    """Add the command to the runtime's command line."""
    serve = commands.add_parser(
        "serve",
        help="answer over HTTP, as OpenAI's endpoints do",
        description="Serve /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics and a chat page at /. "
        "As many answers run at once as the artifact has rows (export with BATCH=8 for eight), others wait. "
        "Ctrl-C or SIGTERM lets what runs end. Needs the extra: pip install 'edgellama[serve]'",
    )
    add_model(serve)
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: %(default)s, this machine only"
    )
    serve.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes a free one")
    serve.add_argument(
        "--api-key", metavar="KEY", help=f"what requests must bear; default: ${KEY_VARIABLE}, else nothing"
    )
    serve.add_argument(
        "--queue", type=int, default=QUEUE, metavar="N", help="answers that may wait; default: %(default)s"
    )
    serve.add_argument(
        "--grace", type=float, default=GRACE, metavar="SECONDS", help="what runs may take to end; default: %(default)s"
    )
    serve.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if options.queue < 0:
        raise UserError(f"--queue is {options.queue}; needed: 0 or more")
    if not 0 <= options.grace <= threading.TIMEOUT_MAX:  # nan is not, either
        raise UserError(f"--grace is {options.grace}; needed: 0 to {threading.TIMEOUT_MAX:,.0f} seconds")
    try:
        import uvicorn

        from runtime.serve.app import Service
    except ImportError as error:
        raise UserError(
            f"serving needs libraries, of which {error.name} is missing. "
            'Install the extra: pip install "edgellama[serve]"'
        ) from error
    key = os.environ.get(KEY_VARIABLE) if options.api_key is None else options.api_key
    if key is not None and not key.strip():
        raise UserError(f"the API key is empty. Give one, or leave out --api-key and ${KEY_VARIABLE}")
    listening = listen(options.host, options.port)
    with listening:
        model = load(options)
        hosts = {"localhost", "127.0.0.1", "::1", options.host} if is_loopback(options.host) else None
        service = Service(model, queue=options.queue, api_key=key, hosts=hosts)
        if hosts is None and key is None:
            print(
                f"warning: whoever reaches {options.host} may use this server. --api-key asks for a key",
                file=sys.stderr,
            )
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        config = uvicorn.Config(
            service.app,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(options.grace) + UNREAD,
        )

        class Server(uvicorn.Server):
            """uvicorn waits for what runs; the scheduler ends it after the grace, at once when told a second time."""

            def handle_exit(self, sig: int, frame: Any) -> None:
                grace = 0.0 if self.should_exit else options.grace
                self.should_exit = True
                threading.Thread(target=service.scheduler.close, args=(grace,), daemon=True).start()

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started:
                    rows = model.engine.batch
                    print(f"Serving {service.name} at {url(listening)} ({rows} rows). Ctrl-C ends it", file=sys.stderr)

        handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            Server(config).run(sockets=[listening])  # raises the signals again when done: by then they are dealt with
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket to accept on. Raises UserError where that address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host} port {port} ({error}). Give another --host or --port") from error


def url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
