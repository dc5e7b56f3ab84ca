"""Where the weights of an artifact came from, as its manifest says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MergedAdapter:
    """A LoRA adapter that the export merged into the weights.

    Attributes:
        folder: as the user gave it (LORA)
        scale: multiplies the adapter's own scaling
        revision: names its content
    """

    folder: str
    scale: float
    revision: str


@dataclass(frozen=True)
class Calibration:
    """The text for which the weights were rounded (CALIBRATION).

    Attributes:
        text: the file's name, or "default"
        sha256: of the file
        tokens: of the text that were used
    """

    text: str
    sha256: str
    tokens: int


@dataclass(frozen=True)
class Source:
    """Where the weights came from.

    Attributes:
        model: the name that the user gave (MODEL)
        origin: the place where that model was found
        revision, licence: of the checkpoint; None if unknown
        seed: the seed of random weights; None for the weights of a checkpoint
        adapters: merged into the weights, in this order
        calibration: the text for which the weights were rounded; None: each weight to the nearest value
    """

    model: str
    origin: str
    revision: str | None
    licence: str | None
    seed: int | None = None
    adapters: tuple[MergedAdapter, ...] = ()
    calibration: Calibration | None = None


def format_of(source: Source) -> int:
    """Return the oldest format version that holds this source: 1, with merged adapters or a calibration 2."""
    return 2 if source.adapters or source.calibration else 1
