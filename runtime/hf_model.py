"""What scripts do with a transformers model besides generate(): call it, place it, count it, save it, close it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .artifact.files import COMPANIONS
from .artifact.manifest import MANIFEST, Artifact
from .engine.engine import Engine
from .errors import UserError
from .generation.config import GenerationConfig
from .generation.prompt import prompt_ids, prompt_mask, prompt_rows
from .generation.sampler import Sampler
from .generation.scoring import every_logit
from .generation.tensors import as_array, kind_of_result
from .hf_adapters import BASE, AdapterMethods
from .hf_keywords import check_placement, refuse_argument
from .mindir.network import Network

IGNORED_LABEL = -100  # transformers leaves these positions out of the loss
# Arguments of transformers' forward() that change nothing here.
WITHOUT_EFFECT = ("token_type_ids", "use_cache", "return_dict", "cache_position")


@dataclass(frozen=True)
class CausalLMOutput:
    """What model(input_ids) returns.

    Attributes:
        logits: float32 [B, n, V], of every position; zeros where the attention mask is 0.
        loss: the mean cross-entropy of the labels in nats; None without labels.
    """

    logits: Any
    loss: Any = None

    def __getitem__(self, key: str | int) -> Any:
        """Return a value by its name, or by its place among those that are not None, as transformers' ModelOutput."""
        if isinstance(key, str):
            if key not in ("logits", "loss"):
                raise KeyError(key)
            return getattr(self, key)
        return [value for value in (self.loss, self.logits) if value is not None][key]


class ModelMethods(AdapterMethods):
    """Methods of LlamaForCausalLM with the names of transformers' PreTrainedModel."""

    artifact: Artifact
    engine: Engine
    _generation_config: GenerationConfig

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        labels: Any = None,
        logits_to_keep: int = 0,
        **arguments: Any,
    ) -> CausalLMOutput:
        """Compute the logits of every position. Needs an artifact of the cpu target.

        Args:
            input_ids: [B, n] (array, tensor or list).
            attention_mask: [B, n] of 0 and 1; None counts every token.
            labels: [B, n]; the loss of each token after the first, without those that are -100.
            logits_to_keep: return the logits of this many last positions; 0 returns all.
            arguments: those of transformers that change no result are accepted; others state what to use.

        Returns:
            Arrays, or torch tensors if input_ids is one.

        Raises:
            UserError: input does not fit, the target returns the logits of last tokens only, or an argument asks for
                something that the exported graphs do not give.
            TypeError: an unknown keyword.
        """
        for name, value in arguments.items():
            if name not in WITHOUT_EFFECT and value is not None and value is not False:
                refuse_argument("model()", name)
        result = kind_of_result(input_ids)
        ids = prompt_ids(input_ids, self.engine.vocab_size)
        mask = prompt_mask(ids, np.ones_like(ids) if attention_mask is None else attention_mask, GenerationConfig())
        rows = prompt_rows(ids, mask)
        adapters = self._adapter_numbers(None, len(rows))
        logits = np.zeros((*ids.shape, self.engine.vocab_size), np.float32)
        with self.engine.engine_lock.take():
            for index, found in enumerate(every_logit(self.engine, rows, adapters)):
                logits[index, mask[index]] = found
        loss = None if labels is None else result(_cross_entropy(logits, np.asarray(labels)))
        return CausalLMOutput(result(np.ascontiguousarray(logits[:, -logits_to_keep:])), loss)

    @property
    def dtype(self) -> str:
        """The artifact's weight format, such as "int8"."""
        return self.artifact.manifest.weights_format

    @property
    def name_or_path(self) -> str:
        """The artifact's folder."""
        return str(self.artifact.path)

    @property
    def generation_config(self) -> GenerationConfig:
        """The default settings. They can be assigned, as a whole or one by one."""
        return self._generation_config

    @generation_config.setter
    def generation_config(self, config: Any) -> None:
        self._generation_config = GenerationConfig.of(config)

    def eval(self) -> Any:
        """Return the model, which is always in evaluation mode."""
        return self

    def train(self, mode: bool = True) -> Any:
        """Return the model if `mode` is False. Raises UserError otherwise: an artifact cannot be trained."""
        if mode:
            raise UserError(
                "an exported model cannot be trained. Train the checkpoint with transformers and PEFT, then export it, "
                "or load its LoRA adapter with load_adapter()"
            )
        return self

    def to(self, *places: Any, **placement: Any) -> Any:
        """Return the model, if device and dtype are those of the artifact; otherwise raise UserError."""
        for place in places:
            name = "dtype" if str(place).removeprefix("torch.") in _TYPES else "device"
            check_placement("to", {name: place}, self.artifact.manifest)
        check_placement("to", placement, self.artifact.manifest)
        return self

    def cpu(self) -> Any:
        """Return the model; inputs and results are in host memory, also with an NPU."""
        return self

    def can_generate(self) -> bool:
        """Return True, as transformers does for models with a head."""
        return True

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return how many parameters the checkpoint has, whatever the weight format.

        Args:
            only_trainable: return 0, since none can be trained.
            exclude_embeddings: leave the input embeddings out.
        """
        if only_trainable:
            return 0
        network = Network.of(self.artifact.manifest)
        return _parameters(network) - (network.vocabulary * network.hidden if exclude_embeddings else 0)

    def compute_transition_scores(
        self,
        sequences: Any,
        scores: Sequence[Any],
        beam_indices: Any = None,
        normalize_logits: bool = False,
    ) -> Any:
        """Return the score of each new token, as transformers' method of this name.

        Args:
            sequences: [B, n + new], as generate() returned them.
            scores: of the same output, per step [rows, V].
            beam_indices: of the same output, if it is one of beam search.
            normalize_logits: turn the scores into log-probabilities first.

        Returns:
            float32 [B, new], an array, or a torch tensor if the scores are. Behind the end of a beam it is 0.

        Raises:
            UserError: there are no scores; generate() gives them with output_scores.
        """
        if not scores:
            raise UserError("scores is empty. Call generate() with return_dict_in_generate=True, output_scores=True")
        result = kind_of_result(scores[0])
        steps = [as_array(step) for step in scores]
        new = as_array(sequences)[:, -len(steps) :]
        if beam_indices is None:
            came_from = np.repeat(np.arange(len(new))[:, None], len(steps), axis=1)
        else:
            came_from = as_array(beam_indices)
            longest = int((came_from >= 0).sum(axis=1).max())
            came_from, steps = came_from[:, :longest], steps[:longest]
            start = np.asarray(sequences).shape[1] - as_array(beam_indices).shape[1]
            new = as_array(sequences)[:, start : start + longest]
        plain = Sampler()
        out = np.zeros(came_from.shape, np.float32)
        for step, kept in enumerate(steps):
            for index, row in enumerate(came_from[:, step].tolist()):
                if row >= 0:
                    out[index, step] = kept[row, new[index, step]]
                    if normalize_logits:
                        out[index, step] -= plain.logsumexp(np.ascontiguousarray(kept[row]))
        return result(out)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Copy the artifact to a new folder, with the present generation_config.

        Raises UserError if the folder exists and is not empty, or cannot be written.
        """
        folder = Path(save_directory).expanduser()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists already. Name a new folder, or empty it")
        source, manifest = self.artifact.path, self.artifact.manifest
        names = [MANIFEST, *(entry.file for entry in manifest.files()), *COMPANIONS]
        try:
            for name in dict.fromkeys(names):
                if (source / name).is_file():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / name, folder / name)
            text = json.dumps(self.generation_config.to_dict(), indent=2) + "\n"
            (folder / "generation_config.json").write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}). Name another folder") from error
        self.artifact.require_unchanged(self.artifact.seen)

    def close(self) -> None:
        """Free the memory of weights, graphs and cache. A later call raises UserError; a second close does nothing."""
        self.engine.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        manifest = self.artifact.manifest
        active = "" if self.active_adapters() in ([], [BASE]) else f", adapter {self.active_adapters()[0]!r}"
        sizes = f"context {manifest.context}, batch {manifest.batch}"
        form = f"{manifest.target} {manifest.weights_format}"
        return f"{type(self).__name__}({str(self.artifact.path)!r}: {manifest.name}, {form}, {sizes}{active})"


_TYPES = ("float32", "float16", "bfloat16", "int8", "float64")


def _parameters(network: Network) -> int:
    """Return the elements of all weights that the network's checkpoint has."""
    linears = [network.linear(part) for part in ("q", "k", "v", "o", "gate", "up", "down")]
    layer = sum(outputs * (inputs + biased) for outputs, inputs, biased in linears)
    layer += network.hidden * sum(name is not None for name in network.norms)
    layer += sum(network.head_norm_sizes) if network.head_norms is not None else 0
    tables = 1 if network.tied else 2
    return network.layers * layer + network.hidden * (1 + tables * network.vocabulary)


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean cross-entropy of labels [B, n], each under the logits [B, n, V] of the position before it."""
    if labels.shape != logits.shape[:2]:
        raise UserError(f"labels has shape {labels.shape}; needed: {logits.shape[:2]}, as input_ids")
    places = np.argwhere(labels[:, 1:] != IGNORED_LABEL)
    plain, losses = Sampler(), []
    for row, column in places.tolist():
        label, scores = int(labels[row, column + 1]), logits[row, column]
        if not 0 <= label < len(scores):
            raise UserError(f"labels holds {label}; needed: 0..{len(scores) - 1} (vocab_size), or {IGNORED_LABEL}")
        losses.append(plain.logsumexp(scores) - float(scores[label]))
    return np.array(np.mean(losses) if losses else np.nan, np.float32)
