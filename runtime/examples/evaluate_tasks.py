"""An artifact in lm-evaluation-harness: its tasks run in this process, on `score` and `generate`, without a server.

    pip install "lm_eval>=0.4.13" transformers
    python -m edgellama.examples.evaluate_tasks ARTIFACT --tasks my_task --include-path FOLDER_OF_TASKS

The artifact is of the cpu target, because `score` is. Texts get no special tokens, as the harness does by default; an
empty context is the model's bos token.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from .. import LlamaForCausalLM

MAX_NEW_TOKENS = 256  # of an answer whose task does not say
OURS = ("temperature", "top_p", "top_k", "do_sample")  # settings of a task that mean the same here


class HarnessModel(TemplateLM):
    """The harness's interface to a model."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model
        self.max_length = model.artifact.manifest.context

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.model.generation_config.eos_token_id[0]

    @property
    def prefix_token_id(self) -> int:
        """What is in front of a text without context."""
        bos = self.model.artifact.manifest.config.get("bos_token_id")
        return bos if isinstance(bos, int) else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text."""
        return self.model.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens))

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is greedy. The harness's own method encodes them."""
        prompts, continuations = [], []
        for _texts, before, after in requests:
            whole = (before + after)[-self.max_length :]  # of a long context the end counts
            continuations.append(after[-(len(whole) - 1) :])
            prompts.append(whole[: len(whole) - len(continuations[-1])])
        scores = self.model.score(prompts, continuations)
        return [(score.sum, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, in windows of the context if it is longer."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length - 1, 1)
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            found.append(sum(value for value, _ in self._loglikelihood_tokens(pairs)))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to one of the texts in `until`."""
        answers = []
        for request in requests:
            context, settings = request.args
            until = settings.get("until") or []
            until = [until] if isinstance(until, str) else until
            limit = settings.get("max_gen_toks", MAX_NEW_TOKENS)
            ids = self.tok_encode(context)[-(self.max_length - limit) :]
            options = {name: settings[name] for name in OURS if name in settings}
            if not settings.get("do_sample"):
                options = {"do_sample": False}
            new = self.model.stream(ids, max_new_tokens=limit, stop_strings=until or None, **options)
            text = "".join(piece.text for piece in new)
            answers.append(text[: min((text.find(stop) for stop in until if stop in text), default=len(text))])
        return answers


def main() -> None:
    """Run tasks, and print their results as JSON."""
    parser = argparse.ArgumentParser(description="Run tasks of lm-evaluation-harness with an artifact.")
    parser.add_argument("artifact", help="folder of an artifact of the cpu target")
    parser.add_argument("--tasks", required=True, help="names, separated by commas")
    parser.add_argument("--include-path", help="a folder with tasks of your own")
    parser.add_argument("--limit", type=int, help="documents of each task; default: all")
    options = parser.parse_args()
    with_model = HarnessModel(LlamaForCausalLM.from_pretrained(options.artifact))
    manager = TaskManager(include_path=options.include_path)
    done = simple_evaluate(
        model=with_model, tasks=options.tasks.split(","), task_manager=manager, limit=options.limit, bootstrap_iters=0
    )
    print(json.dumps(done["results"], indent=2, default=float))


if __name__ == "__main__":
    main()
