"""A model that writes what a test tells it to: its logits are a table; engine, cache and server are the real ones.

The tokenizer is byte-level, so that every text can be written. Where a grammar forbids the wanted token, the model
prefers tokens that end what it has begun.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken

from edgellama.artifact.manifest import Artifact, Graph, write_manifest
from edgellama.engine.engine import Engine
from edgellama.model import LlamaForCausalLM
from support.tiny import manifest
from support.toy_tokenizers import byte_level

EOS = "</s>"
WANTED, CLOSING = 90.0, ("</s>", '"', "}", "]", ")")  # the closing tokens have the logits 50, 49, ...


class ScriptedGraph:
    """The step graph. The token at position n behind the prompt gets the highest logit at that place.

    Attributes:
        wanted: the token ids that the model wants to write.
        prompt: how many tokens the prompt has.
    """

    def __init__(self, graph: Graph) -> None:
        self.inputs = [spec.name for spec in graph.inputs]
        self.caches = [spec.shape for spec in graph.outputs[1:]]
        self.vocab_size = graph.outputs[0].shape[1]
        self.wanted: Sequence[int] = ()
        self.prompt = 0
        self.closing: Sequence[int] = ()

    def resize(self, shapes: Sequence[Sequence[int]]) -> None:
        """Every shape is possible."""

    def bind(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        return list(arrays)

    def run(self, bound: list[Any]) -> list[np.ndarray]:
        x = dict(zip(self.inputs, bound, strict=True))
        rows, size = x["tokens"].shape
        logits = np.zeros((rows, self.vocab_size), np.float32)
        logits[:, self.closing] = 50 - np.arange(len(self.closing))
        positions = x["positions"].reshape(-1)[x["last"].reshape(-1)]
        for row, position in enumerate(positions):
            place = int(position) + 1 - self.prompt
            if 0 <= place < len(self.wanted):
                logits[row, self.wanted[place]] = WANTED
        new = [np.zeros((rows, shape[1], size, shape[3]), np.float32) for shape in self.caches]
        return [logits, *new]


class ScriptedModel:
    """A model with a script.

    Attributes:
        model: the loaded model.
    """

    def __init__(self, folder: Path, template: str, special: Sequence[str] = (), added: Sequence[str] = ()) -> None:
        """Write the artifact and load it.

        Args:
            folder: for the artifact.
            template: its chat template.
            special: special tokens besides <s>, </s> and <|start|>.
            added: added tokens that are not special.
        """
        tokenizer = byte_level()
        tokenizer.add_special_tokens(list(special))
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
        size = tokenizer.get_vocab_size()
        made = manifest(folder, 2, 1024, (1, 16, 128), eos_token_id=(tokenizer.token_to_id(EOS),))
        (graph,) = made.graphs
        logits = dataclasses.replace(graph.outputs[0], shape=(2, size))
        config = {**made.config, "vocab_size": size}
        graph = dataclasses.replace(graph, outputs=(logits, *graph.outputs[1:]))
        write_manifest(folder, dataclasses.replace(made, graphs=(graph,), config=config))
        tokenizer.save(str(folder / "tokenizer.json"))
        special_tokens = {"bos_token": "<s>", "eos_token": EOS, "chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(special_tokens))
        opened = Artifact.open(folder)
        self._graph = ScriptedGraph(opened.manifest.graphs[0])
        self._graph.closing = [tokenizer.encode(text, add_special_tokens=False).ids[0] for text in CLOSING]
        self.model = LlamaForCausalLM(opened, Engine(opened, build=lambda *_, **__: self._graph))

    def write(self, text: str, prompt: int, *, end: bool = True) -> None:
        """Let the next answer be this text.

        Args:
            text: may have special tokens.
            prompt: how many tokens the prompt has.
            end: whether eos follows.
        """
        ids = self.model.tokenizer.encode(text + (EOS if end else ""), add_special_tokens=False)
        self._graph.wanted, self._graph.prompt = ids, prompt
