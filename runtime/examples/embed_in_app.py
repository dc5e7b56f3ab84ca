"""A model inside an app: loaded once, asked from many threads.

The app is a small HTTP service. POST it a question as plain text, and the answer comes back as it is generated:

    python -m runtime.examples.embed_in_app artifacts/smollm2-135m-instruct-cpu-int8 --port 8001
    curl --no-buffer --data "Why is the sky blue?" http://127.0.0.1:8001/

A model runs one generation at a time; threads that ask meanwhile wait their turn. `python -m runtime serve` answers
several at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from runtime import LlamaForCausalLM, UserError
from runtime.generation.stream import Stream

LONGEST = 64_000  # bytes of a question


class Assistant:
    """What the rest of the app sees of the model."""

    def __init__(self, artifact: str, max_new_tokens: int) -> None:
        self.model = LlamaForCausalLM.from_pretrained(artifact)
        self.max_new_tokens = max_new_tokens

    def answer(self, question: str) -> Generator[str, None, None]:
        """The answer, piece by piece. Raises UserError, before the first piece, for a question that does not fit."""
        prompt: str | list[int] = question
        if self.model.tokenizer.chat_template is not None:
            prompt = self.model.tokenizer.encode_chat([{"role": "user", "content": question}])
        stream = self.model.stream(prompt, max_new_tokens=self.max_new_tokens, do_sample=False)
        return self._texts(stream)

    @staticmethod
    def _texts(stream: Stream) -> Generator[str, None, None]:
        with stream:  # whoever stops reading ends the generation, and the next one has its turn
            for piece in stream:
                yield piece.text


class Service(ThreadingHTTPServer):
    """One thread a request, one assistant for all."""

    def __init__(self, address: tuple[str, int], assistant: Assistant) -> None:
        super().__init__(address, Handler)
        self.assistant = assistant


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", 0))
            if not 0 < length <= LONGEST:
                raise UserError(f"the question has {length} bytes; needed: 1 to {LONGEST}")
            answer = self.server.assistant.answer(self.rfile.read(length).decode("utf-8"))
        except (UserError, ValueError) as error:  # ValueError: a length that is no number, or bytes that are no UTF-8
            self.send_error(400, explain=str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        try:
            for text in answer:
                self.wfile.write(text.encode())
                self.wfile.flush()
        except ConnectionError:
            answer.close()  # the asker has gone

    def log_message(self, *args: object) -> None:
        """Nothing: an app has a log of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description="answer questions over HTTP, one thread a request")
    parser.add_argument("artifact", help="an artifact, as `make export` writes it")
    parser.add_argument("--port", type=int, default=8001, metavar="N", help="0: any free one; default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    with Service(("127.0.0.1", options.port), Assistant(options.artifact, options.max_new_tokens)) as service:
        print(f"Ask http://127.0.0.1:{service.server_port}/ (Ctrl-C ends)", flush=True)
        try:
            service.serve_forever()
        except KeyboardInterrupt:
            service.assistant.model.cancel()


if __name__ == "__main__":
    main()
