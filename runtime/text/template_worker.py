"""Renders one chat template in its own process, with limits on memory, processor time and output.

A template comes with the weights, so it is code of a stranger. jinja2's sandbox keeps it away from the machine, but not
from endless loops and huge strings, and nothing stops those inside a thread. `chat_template.py` starts this file as a
script. It imports nothing of the package, so that it starts quickly.

A message is its length in 8 bytes and its bytes. The first request is the Setup as JSON, each further one the variables
of the template as JSON. An answer begins with a byte of ANSWERS; then comes the text in UTF-8.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

TEXT, REFUSED, TOO_LONG, TOO_LARGE = ANSWERS = b"trol"
LENGTH_BYTES = 8
ERROR_CHARACTERS = 500  # of a template's message


def read_message(stream: BinaryIO) -> bytes | None:
    """Return the next message; None at the end of the stream."""
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    length = int.from_bytes(head, "little")
    data = stream.read(length)
    return data if len(data) == length else None


def framed(data: bytes) -> bytes:
    """Return the bytes of a message."""
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def environment() -> Any:
    """Return the jinja2 environment, with the functions that Hugging Face's templates use."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %} ... {% endgeneration %} marks an assistant's text for training; its body is rendered."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return plain JSON; jinja2's own filter escapes characters for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    import datetime

    return datetime.datetime.now().strftime(pattern)


def _limit_memory(memory: int) -> None:
    """Limit the bytes that this process may map in addition to what it has mapped, and forbid files."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - pathlib takes longer to import
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_AS, mapped + memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _render(template: Any, variables: dict[str, Any], most: int) -> bytes:
    """Return the answer with the text of the template, of at most `most` characters."""
    pieces: list[str] = []
    length = 0
    for piece in template.generate(**variables):
        length += len(piece)
        if length > most:
            return bytes([TOO_LONG])
        pieces.append(piece)
    return bytes([TEXT]) + "".join(pieces).encode("utf-8", "surrogatepass")


def _answer(work: Any) -> bytes:
    """Return the answer of `work`, or the answer that describes its exception."""
    import jinja2

    try:
        return work()
    except MemoryError:
        return bytes([TOO_LARGE])
    except RecursionError:
        text = "it is nested too deeply"
    except jinja2.TemplateSyntaxError as error:
        text = f"line {error.lineno}: {error.message}"
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        text = str(error)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    return bytes([REFUSED]) + text[:ERROR_CHARACTERS].encode("utf-8", "replace")


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    first = read_message(requests)
    if first is None:
        return
    setup = json.loads(first)
    sys.path[:] = setup["path"]
    made = environment()
    _limit_memory(setup["memory"])
    template: Any = None

    def compiled() -> bytes:
        nonlocal template
        template = made.from_string(setup["template"])
        return bytes([TEXT])

    def limited(work: Any) -> bytes:
        # The kernel ends this process at the limit, inside of native code, too.
        signal.setitimer(signal.ITIMER_PROF, setup["seconds"])
        try:
            return _answer(work)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    answer = limited(compiled)
    while True:
        answers.write(framed(answer))
        answers.flush()
        request = read_message(requests)
        if request is None:
            return
        variables = json.loads(request)
        answer = limited(lambda: _render(template, variables, setup["characters"]))  # noqa: B023 - called at once
        del variables, request


if __name__ == "__main__":
    main()
