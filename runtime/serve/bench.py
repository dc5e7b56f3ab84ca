"""python -m edgellama.serve.bench ARTIFACT: measures a server with one client and with several clients at once.

Starts the server in a separate process and streams greedy answers of a fixed length from it. Each client has its own
prompt. A round is one client alone, then all clients at once. The figures are medians over the rounds, in tokens per
second from the first request to the last token. The text of each client is compared with what it gets alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ..checkout import module_command
from ..cli.options import add_artifact, add_threads
from ..engine.weights_memory import add_weights_memory
from ..errors import UserError

TOPICS = ("rivers", "bread", "clocks", "bridges", "whales", "maps", "glass", "winter")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for an error that the user can fix."""
    parser = argparse.ArgumentParser(prog="python -m edgellama.serve.bench", description=__doc__)
    add_artifact(parser)
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--tokens", type=int, default=128, metavar="N", help="tokens of each answer; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    add_threads(parser)
    add_weights_memory(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        with server(options.artifact, options.threads, options.weights_memory) as url:
            report = asyncio.run(measure(url, options.clients, options.tokens, options.rounds))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=1) if options.json else table(report))
    return 0


@contextmanager
def server(artifact: str, threads: int | None, weights_memory: str) -> Any:
    """Run a server inside the block. Yields its URL. Raises UserError if it does not start."""
    command = [*module_command("edgellama"), "serve", artifact, "--port", "0", "--weights-memory", weights_memory]
    command += [] if threads is None else ["--threads", str(threads)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    if process.stderr is None:
        raise ValueError("no pipe to read the server's address from")
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("Serving "):
                yield line.partition(" at ")[2].partition(" ")[0]
                return
        raise UserError("the server did not start: " + (lines[-1].strip() if lines else "it printed no reason"))
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


async def measure(url: str, clients: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Measure. Returns the object that --json prints; rates are in tokens per second.

    One answer per prompt warms up and gives the texts to compare with.
    """
    prompts = [f"Tell me about {TOPICS[i % len(TOPICS)]}, and about the number {i}." for i in range(clients)]
    model = await model_name(url)
    alone = [await stream_answer(url, model, prompt, tokens) for prompt in prompts]
    one, together, first = [], [], []
    equal = True
    for _ in range(rounds):
        start_time = time.perf_counter()
        single = await stream_answer(url, model, prompts[0], tokens)
        one.append(single[1] / (time.perf_counter() - start_time))
        start_time = time.perf_counter()
        answers = await asyncio.gather(*(stream_answer(url, model, prompt, tokens) for prompt in prompts))
        together.append(sum(count for _, count, _ in answers) / (time.perf_counter() - start_time))
        first.append(statistics.median(seconds for _, _, seconds in answers))
        equal = equal and [answer[0] for answer in answers] == [answer[0] for answer in alone]
    return {
        "model": model,
        "clients": clients,
        "tokens": tokens,
        "one_client_tokens_per_second": statistics.median(one),
        "all_clients_tokens_per_second": statistics.median(together),
        "ratio": statistics.median(many / single for many, single in zip(together, one, strict=True)),
        "median_seconds_to_first_token": statistics.median(first),
        "same_text_as_alone": equal,
        "samples": {"one": one, "all": together},
    }


async def model_name(url: str) -> str:
    """The name of the server's only model."""
    body = (await request(url, "GET", "/v1/models", b""))[0]
    return str(json.loads(body)["data"][0]["id"])


async def stream_answer(url: str, model: str, prompt: str, tokens: int) -> tuple[str, int, float]:
    """Stream an answer. Returns (text, number of tokens, seconds to the first token)."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start_time = time.perf_counter()
    raw, times = await request(url, "POST", "/v1/chat/completions", json.dumps(body).encode())
    chunks = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
    return text, chunks[-1]["usage"]["completion_tokens"], times[1] - start_time


async def request(url: str, method: str, path: str, body: bytes) -> tuple[bytes, list[float]]:
    """Send a request. Returns the body of the response, and the time.perf_counter() at which each chunk arrived.

    It uses no HTTP library, because the clients share the machine with the server and must take little of its time.
    Raises UserError for a status other than 200.
    """
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answered = await reader.readuntil(b"\r\n\r\n")
    if not answered.startswith(b"HTTP/1.1 200"):
        raise UserError(f"{path}: {answered.splitlines()[0].decode()}: {(await reader.read()).decode()}")
    times: list[float] = []
    pieces: list[bytes] = []
    if b"transfer-encoding: chunked" not in answered.lower():
        return await reader.read(), times
    while size := int(await reader.readline(), 16):
        pieces.append(await reader.readexactly(size))
        times.append(time.perf_counter())
        await reader.readexactly(2)
    writer.close()
    return b"".join(pieces), times


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    return (
        f"{report['model']}, {report['tokens']} tokens per answer\n"
        f"one client   {report['one_client_tokens_per_second']:8.1f} tokens/s\n"
        f"{report['clients']} at once    {report['all_clients_tokens_per_second']:8.1f} tokens/s, "
        f"{report['ratio']:.2f} times; {report['median_seconds_to_first_token'] * 1e3:.0f} ms to the first token\n"
        f"same text as alone: {'yes' if report['same_text_as_alone'] else 'no'}"
    )


if __name__ == "__main__":
    sys.exit(main())
