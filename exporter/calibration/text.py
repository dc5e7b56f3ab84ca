"""The text that CALIBRATION names, as token ids."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellama.artifact.source import Calibration
from edgellama.errors import UserError
from edgellama.text.tokenizer import Tokenizer

from ..network.config import LlamaConfig

DEFAULT = "default"
# "A Scandal in Bohemia" and "The Red-Headed League" by Arthur Conan Doyle (1891), in the public domain everywhere: the
# author died in 1930.
DEFAULT_TEXT = Path(__file__).parent / "sherlock.txt"
LENGTH = 512  # tokens of a sequence
SEQUENCES = 32
LEAST = 1024  # tokens
INNER_BYTES = 512 << 20  # the float32 inputs of down_proj for all tokens take at most this


def calibration_tokens(
    given: str, tokenizer_folder: Path, config: LlamaConfig
) -> tuple[NDArray[np.int32], Calibration]:
    """Return sequences of the text, int32 [sequences, length], and what the manifest says of it.

    The beginning of the text is cut into sequences of at most 512 tokens: 32 of them, or fewer for a large network.
    Each begins with the token that the tokenizer puts before a text, if it has one.

    Raises UserError if the file cannot be read or is too short.

    Args:
        given: a path, or "default".
        tokenizer_folder: where the artifact's tokenizer is.
    """
    path = DEFAULT_TEXT if given == DEFAULT else Path(given)
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise UserError(
            f"CALIBRATION: {path} cannot be read ({error.strerror}). Name a text file, or `default`"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"CALIBRATION: {path} is not UTF-8 text ({error}). Convert it first") from error
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    body = tokenizer.encode(text, add_special_tokens=False)
    begin = tokenizer.encode(text)[:1]
    prefix = begin if begin != body[:1] else []
    size = min(LENGTH, config.longest_context) - len(prefix)
    most = min(SEQUENCES, max(LEAST // LENGTH, INNER_BYTES // (4 * LENGTH * config.intermediate_size)))
    count = min(len(body) // size, most)
    if count * size < min(LEAST, most * size):
        raise UserError(
            f"CALIBRATION: {path} has {len(body):,} tokens; needed: at least {LEAST:,}, best {SEQUENCES * LENGTH:,}. "
            "Use a longer text"
        )
    rows = [prefix + body[i * size : (i + 1) * size] for i in range(count)]
    tokens = np.array(rows, np.int32)
    name = DEFAULT if given == DEFAULT else path.name
    return tokens, Calibration(name, hashlib.sha256(data).hexdigest(), tokens.size)
