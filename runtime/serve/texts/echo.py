"""`echo`: the prompt's text in front of its answer, and the log-probability of each of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...backend.cpu_head import CpuHead
from ...errors import LogitsError
from ...generation.sampler import NotNumbersError, Sampler
from ...text.tokenizer import Tokenizer
from ..sequence import TokenLogprobs, most_likely

LOGITS_AT_ONCE = 1 << 24  # elements of a block of logits: 64 MB


class PromptLogprobs:
    """Reads the hidden states of a prompt, chunk by chunk.

    Attributes:
        entries: of the tokens so far. The first token has no log-probability, since nothing is before it.
    """

    def __init__(self, ids: np.ndarray, offsets: Sequence[int], top: int) -> None:
        """Begin with the first token.

        Args:
            ids: token ids [n] of the prompt.
            offsets: where the text of each token begins in the echoed text, in characters.
            top: how many alternatives each token has.
        """
        self.entries = [TokenLogprobs(int(ids[0]), None, (), offsets[0])]
        self._ids, self._offsets, self._top = ids, offsets, top
        self._sampler = Sampler()

    def read(self, head: CpuHead, states: np.ndarray) -> None:
        """Add the tokens that follow these hidden states [n, hidden_size], the next ones of the prompt.

        Raises LogitsError if the logits are not numbers.
        """
        ahead = len(self._ids) - len(self.entries)  # nothing follows the state of the last token
        for block in _blocks(min(len(states), ahead), head.vocab_size):
            logits = head.logits(states[block])
            for row in range(len(logits)):
                place = len(self.entries)
                token = int(self._ids[place])
                try:
                    normaliser = self._sampler.logsumexp(logits, row)
                except NotNumbersError as error:
                    raise LogitsError(
                        f"logits are not numbers after {place} tokens of the prompt. Compare the artifact's files with "
                        "`edgellama check`, and export it again"
                    ) from error
                top = most_likely(logits[row], normaliser, self._top)
                logprob = float(logits[row, token]) - normaliser
                self.entries.append(TokenLogprobs(token, logprob, top, self._offsets[place]))


def _blocks(count: int, vocab_size: int) -> Iterator[slice]:
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def echoed(tokenizer: Tokenizer, prompt: str | Sequence[int], ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text that `echo` returns for a prompt, and where each token begins in it, in characters.

    Args:
        tokenizer: decodes the ids.
        prompt: of the request. A text is returned unchanged; token ids are decoded, special tokens included.
        ids: the prompt's token ids. Those that the tokenizer adds to a text, such as bos, have no place of their own.
    """
    stream = tokenizer.text_stream(skip_special_tokens=False)
    offsets, pieces, length = [], [], 0
    for token in ids:
        offsets.append(length + stream.held)
        pieces.append(stream.push(int(token)))
        length += len(pieces[-1])
    decoded = "".join([*pieces, stream.flush()])
    if not isinstance(prompt, str):
        return decoded, offsets
    before = max(0, decoded.find(prompt))
    return prompt, [min(max(0, offset - before), len(prompt)) for offset in offsets]
