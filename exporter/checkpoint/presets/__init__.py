"""The models with a short name: their hub id, licence and config, a file for each group of publishers."""

from __future__ import annotations

from .gemma_and_phi import GEMMAS, PHIS
from .llama import LLAMAS
from .mistral import MISTRALS
from .others import OTHERS
from .preset import Preset, RegistryFile
from .qwen import QWENS

__all__ = ["PRESETS", "Preset", "RegistryFile"]

PRESETS = {preset.name: preset for preset in (*LLAMAS, *MISTRALS, *QWENS, *GEMMAS, *PHIS, *OTHERS)}
