"""The head of the cpu op set outside the graphs: hidden states of every position, and logits of any of them.

A graph returns the logits of each row's last token. Its operator EdgeHead gives the hidden states of the whole pass
instead, if they are requested, and the same kernel then computes the head for the positions that are needed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..artifact.manifest import Manifest
from ..artifact.safetensors import TensorFile
from ..mindir.cpu import FORMATS, table_format
from ..mindir.network import Network
from .cpu_kernels import kernel_library

FORMAT_NUMBERS = ("f32", "bf16", "int8", "int4", "q4_0")  # the order of enum class Format in linear/weight_format.h


class CpuHead:
    """The final norm and the output matrix of a loaded artifact.

    Attributes:
        hidden_size: elements of a hidden state.
        vocab_size: width of the logits.
    """

    def __init__(self, manifest: Manifest, weights: TensorFile, threads: int) -> None:
        """Take the weights from where the graphs read them.

        Args:
            manifest: of an artifact of the cpu op set.
            weights: its weights; the same memory that the graphs are bound to.
            threads: of the kernels.
        """
        network = Network.of(manifest)
        self.hidden_size, self.vocab_size = network.hidden, network.vocabulary
        self._threads = threads
        self._format = FORMAT_NUMBERS.index(table_format(FORMATS[network.weights]))
        self._eps, self._softcap = network.eps, network.logits_softcap or 0.0
        self._weight = weights.array("model.embed_tokens.weight" if network.tied else "lm_head.weight")
        self._gamma = weights.array("model.norm.weight")
        self._library = kernel_library()

    @contextmanager
    def requested(self, tokens: int) -> Iterator[np.ndarray]:
        """Within the block, passes over this many tokens (rows x bucket) write their hidden states.

        Yields:
            float32 [tokens, hidden_size], written by each pass; padding tokens have any value. The logits of these
            passes are zeros.
        """
        hidden = np.empty((tokens, self.hidden_size), np.float32)
        self._request(hidden)
        try:
            yield hidden
        finally:
            self._request(None)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Return the logits [n, vocab_size] float32 of hidden states [n, hidden_size] float32, n >= 1."""
        hidden = np.ascontiguousarray(hidden, np.float32)
        logits = np.empty((len(hidden), self.vocab_size), np.float32)
        code = self._library.edgellama_head(
            *(self._threads, self._format, len(hidden), self.hidden_size, self.vocab_size),
            *(ctypes.c_float(self._eps), ctypes.c_float(self._softcap)),
            *(ctypes.c_void_p(array.ctypes.data) for array in (hidden, self._weight, self._gamma, logits)),
        )
        if code != 0:
            raise RuntimeError(f"edgellama_head refused {hidden.shape} hidden states (code {code})")
        return logits

    def normalised(self, hidden: np.ndarray) -> np.ndarray:
        """Return hidden states [..., hidden_size] after the final norm (RMSNorm, arXiv:1910.07467), as transformers'
        last_hidden_state."""
        squares = np.mean(np.square(hidden), axis=-1, keepdims=True, dtype=np.float32)
        return (hidden / np.sqrt(squares + np.float32(self._eps)) * self._gamma).astype(np.float32)

    def _request(self, hidden: np.ndarray | None) -> None:
        code = self._library.edgellama_request_hidden(
            ctypes.c_void_p(self._weight.ctypes.data),
            ctypes.c_void_p(None if hidden is None else hidden.ctypes.data),
            ctypes.c_long(0 if hidden is None else hidden.size),
        )
        if code != 0:
            raise RuntimeError(f"edgellama_request_hidden failed (code {code})")
