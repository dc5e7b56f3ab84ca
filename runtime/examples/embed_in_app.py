"""A model inside an app: loaded once, used from many threads.

The app is a small HTTP service. POST a question as plain text, and the answer streams back while it is generated:

    python -m edgellama.examples.embed_in_app artifacts/smollm2-135m-instruct-cpu-int8 --port 8001
    curl --no-buffer --data "Why is the sky blue?" http://127.0.0.1:8001/

A model runs one generation at a time; other threads wait until it ends. `edgellama serve` runs several answers
at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .. import LlamaForCausalLM, UserError
from ..generation.stream import Stream

MAX_QUESTION = 64_000  # bytes


class Assistant:
    """The app's interface to the model."""

    def __init__(self, artifact: str, max_new_tokens: int) -> None:
        self.model = LlamaForCausalLM.from_pretrained(artifact)
        self.max_new_tokens = max_new_tokens

    def answer(self, question: str) -> Generator[str, None, None]:
        """Yields the answer piece by piece. Raises UserError before the first piece if the question does not fit."""
        prompt: str | list[int] = question
        if self.model.tokenizer.chat_template is not None:
            prompt = self.model.tokenizer.encode_chat([{"role": "user", "content": question}])
        stream = self.model.stream(prompt, max_new_tokens=self.max_new_tokens, do_sample=False)
        return self._texts(stream)

    @staticmethod
    def _texts(stream: Stream) -> Generator[str, None, None]:
        with stream:  # if the reader stops early, this ends the generation, and the next one can start
            for piece in stream:
                yield piece.text


class QuestionServer(ThreadingHTTPServer):
    """Handles each request in a thread; all threads share one assistant."""

    def __init__(self, address: tuple[str, int], assistant: Assistant) -> None:
        super().__init__(address, QuestionHandler)
        self.assistant = assistant


class QuestionHandler(BaseHTTPRequestHandler):
    """Answers one POST request."""

    server: QuestionServer

    def do_POST(self) -> None:
        """Stream the answer to the question in the body; status 400 for a question that does not fit."""
        try:
            length = int(self.headers.get("Content-Length", 0))
            if not 0 < length <= MAX_QUESTION:
                raise UserError(f"the question has {length} bytes; needed: 1 to {MAX_QUESTION}")
            answer = self.server.assistant.answer(self.rfile.read(length).decode("utf-8"))
        except (UserError, ValueError) as error:  # ValueError: an invalid length, or invalid UTF-8
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
            answer.close()  # the client has disconnected

    def log_message(self, *args: object) -> None:
        """Do nothing: an app has its own log."""


def main() -> None:
    """Run the app until Ctrl-C."""
    parser = argparse.ArgumentParser(description="answer questions over HTTP, one thread per request")
    parser.add_argument("artifact", help="folder written by `make export`")
    parser.add_argument("--port", type=int, default=8001, metavar="N", help="0 takes a free port; default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    with QuestionServer(("127.0.0.1", options.port), Assistant(options.artifact, options.max_new_tokens)) as service:
        print(f"Ask http://127.0.0.1:{service.server_port}/ (Ctrl-C ends)", flush=True)
        try:
            service.serve_forever()
        except KeyboardInterrupt:
            service.assistant.model.cancel()


if __name__ == "__main__":
    main()
