"""Writes the tokenizer, chat templates and generation settings of an artifact, and opens them as the runtime does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgellama.artifact.json_reader import parse_object
from edgellama.errors import UserError
from edgellama.generation.stored_settings import usable
from edgellama.text.tokenizer import Tokenizer

from ..checkpoint.tokenizer_files import REMEDY

SAMPLE = "The quick brown fox jumps over 13 lazy dogs.\n"


def write_companions(folder: Path, files: Mapping[str, bytes], vocab_size: int, origin: Path) -> list[str]:
    """Write the files, and open them as the runtime will, so that an artifact that cannot answer is never finished.

    Args:
        folder: the artifact.
        files: name -> content, as `Checkpoint.tokenizer_files` returns them.
        vocab_size: rows of the embedding.
        origin: the checkpoint, for messages.

    Returns:
        what the user should know of settings and tokens that cannot be used as they are.

    Raises:
        UserError: the tokenizer, a chat template or the generation settings cannot be used.
    """
    for name, data in files.items():
        (folder / name).write_bytes(data)
    notes = usable(parse_object(files["generation_config.json"]))[1]
    notes = [f"generation_config.json: {note}" for note in notes]
    if "tokenizer.json" not in files:
        return notes
    try:
        tokenizer = Tokenizer.from_folder(folder, REMEDY)
        tokenizer.check_templates()
        tokenizer.decode(tokenizer.encode(SAMPLE))
    except UserError as error:
        raise UserError(_of_origin(str(error), folder, origin)) from error
    except Exception as error:  # tokenizers raises Exception itself
        raise UserError(f"{origin}: the tokenizer does not work ({error}). Download its files again") from error
    return notes + _check_vocabulary(tokenizer, vocab_size, origin)


def _check_vocabulary(tokenizer: Tokenizer, vocab_size: int, origin: Path) -> list[str]:
    """Raise UserError if the tokenizer is another model's. Returns notes on added tokens without a row."""
    ordinary = tokenizer.model.get_vocab(with_added_tokens=False)
    added = {token.content: number for number, token in tokenizer.model.get_added_tokens_decoder().items()}
    if not ordinary:
        raise UserError(f"{origin}: the tokenizer has no tokens. Download it again, or export with TOKENIZER=none")
    largest = max((number for token, number in ordinary.items() if token not in added), default=0)
    if largest >= vocab_size:
        raise UserError(
            f"{origin}: the tokenizer has ids up to {largest:,}, and the model {vocab_size:,} tokens (vocab_size): it "
            "is the tokenizer of another model. Download the checkpoint again"
        )
    beyond = sorted((number, token) for token, number in added.items() if number >= vocab_size)
    if not beyond:
        return []
    listed = ", ".join(f"{token!r} ({number:,})" for number, token in beyond[:3]) + (", ..." if len(beyond) > 3 else "")
    return [f"the model has {vocab_size:,} tokens (vocab_size), so prompts cannot have {listed}"]


def _of_origin(text: str, folder: Path, origin: Path) -> str:
    """Return a message about the artifact's files with the names of the checkpoint's files, which the user has."""
    source = "chat_template.jinja" if (origin / "chat_template.jinja").exists() else "tokenizer_config.json"
    if origin.is_dir():
        text = text.replace(f"{folder}/chat_template.jinja", f"{origin}/{source}").replace(f"{folder}/", f"{origin}/")
        for path in sorted(origin.glob("additional_chat_templates/*.jinja")):
            text = text.replace(f"the chat template {path.stem!r}", f"{path}")
        return text.replace("the chat template '", f"{origin}/{source}: the chat template '")
    return text.replace(f"{folder}/chat_template.jinja", f"{origin}: tokenizer.chat_template").replace(
        str(folder), str(origin)
    )
