"""Works on input of strangers in its own process, with limits on memory, processor time and output.

A chat template comes with the weights, a regular expression with an adapter, and a grammar with a request. jinja2's
sandbox keeps a template away from the machine, but nothing stops an endless loop, or native code, in a thread.
`process.py` starts this file as a script. It imports nothing of the package, so that it starts quickly.

A message is its length in 8 bytes and its bytes. The first request is the setup as JSON, further ones are JSON of the
job. An answer begins with a byte of ANSWERS; then comes the text in UTF-8.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
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


class TemplateJob:
    """Compiles a chat template, then renders it with the variables of each request."""

    def __init__(self) -> None:
        self.environment = environment()

    def prepare(self, setup: dict[str, Any]) -> bytes:
        """Compile `template`; the texts may have `characters`."""
        self.most = setup["characters"]
        self.template = self.environment.from_string(setup["template"])
        return bytes([TEXT])

    def answer(self, variables: dict[str, Any]) -> bytes:
        """Return the answer with the text of the template."""
        pieces: list[str] = []
        length = 0
        for piece in self.template.generate(variables):
            length += len(piece)
            if length > self.most:
                return bytes([TOO_LONG])
            pieces.append(piece)
        return bytes([TEXT]) + "".join(pieces).encode("utf-8", "surrogatepass")


class GrammarJob:
    """Compiles the grammar of each request, for a small vocabulary."""

    def __init__(self) -> None:
        import llguidance

        self.library = llguidance

    def prepare(self, setup: dict[str, Any]) -> bytes:
        """Make the vocabulary: the bytes, and an eos token."""
        self.tokenizer = self.library.LLTokenizer(self.library.TokenizerWrapper(_Bytes()))
        self.limits = self.library.LLParserLimits(**setup["parser_limits"])
        return bytes([TEXT])

    def answer(self, request: dict[str, Any]) -> bytes:
        """Return an empty text if the grammar can be compiled; otherwise the reason."""
        matcher = self.library.LLMatcher(self.tokenizer, request["grammar"], log_level=0, limits=self.limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if not matcher.is_error():
            return bytes([TEXT])
        reason = matcher.get_error().strip() or str(matcher.stop_reason())
        if len(reason) > ERROR_CHARACTERS:  # several lines of a long expression; the last one says what is wrong
            reason = reason[:ERROR_CHARACTERS] + "\n" + reason[reason.rfind("\n") + 1 :][:ERROR_CHARACTERS]
        return bytes([REFUSED]) + reason.encode("utf-8", "replace")


class ExpressionJob:
    """Matches each of some regular expressions with each of some texts."""

    def prepare(self, setup: dict[str, Any]) -> bytes:
        """Nothing to prepare."""
        return bytes([TEXT])

    def answer(self, request: list[list[str]]) -> bytes:
        """Return an empty text when all are matched."""
        import re

        expressions, texts = request
        for expression in expressions:
            compiled = re.compile(expression)
            for text in texts:
                compiled.match(text)
                compiled.fullmatch(text)
        return bytes([TEXT])


class _Bytes:
    """A tokenizer of single bytes, in the form that llguidance reads."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<eos>")
    special_token_ids = (256,)

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


JOBS: dict[str, Any] = {"template": TemplateJob, "grammar": GrammarJob, "expressions": ExpressionJob}


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


def _limited(work: Callable[[Any], bytes], argument: Any, seconds: float) -> bytes:
    """Return the answer of `work`, or the one that describes its exception.

    The kernel ends this process after `seconds` of processor time, inside of native code, too.
    """
    import signal

    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return work(argument)
    except MemoryError:
        return bytes([TOO_LARGE])
    except RecursionError:
        text = "it is nested too deeply"
    except Exception as error:
        line = getattr(error, "lineno", None)
        plain = type(error).__name__.startswith(("Template", "Undefined", "Security", "Type", "Value"))
        text = f"line {line}: " if line is not None else "" if plain else f"{type(error).__name__}: "
        text += str(getattr(error, "message", None) or error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
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
    job = JOBS[setup["job"]]()
    _limit_memory(setup["memory"])
    answer = _limited(job.prepare, setup, setup["seconds"])
    while True:
        answers.write(framed(answer))
        answers.flush()
        request = read_message(requests)
        if request is None:
            return
        answer = _limited(job.answer, json.loads(request), setup["seconds"])


if __name__ == "__main__":
    main()
