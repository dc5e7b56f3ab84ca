"""Opens the checkpoint that MODEL names: files on this machine, a download, or random weights."""

from __future__ import annotations

from pathlib import Path

from edgellama.artifact.manifest import Manifest
from edgellama.errors import UserError

from ..network.config import LlamaConfig
from .base import Checkpoint, read_config_file
from .merged import MergedCheckpoint, merged
from .presets import PRESETS
from .source import ResolvedSource, expanded, model_name, resolve
from .source_kinds import local_source
from .synthetic import SyntheticCheckpoint


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face folder or a .gguf file. Raises UserError if it is not a complete, supported Llama."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a Hugging Face folder or a .gguf file")
    path = local_source(path)
    # Late imports: a board that verifies an artifact has safetensors or gguf, not both.
    if path.is_dir():
        from .safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path)
    from .gguf.checkpoint import GGUFCheckpoint

    return GGUFCheckpoint(path)


def open_model(model: str, seed: int | None) -> tuple[ResolvedSource, Checkpoint]:
    """Return MODEL's checkpoint, and where it was found.

    seed: the seed of random weights. Then MODEL gives the config only: a preset, or a folder with a config.json.
    None: the weights of the checkpoint.

    Raises UserError if there is no such model.
    """
    if seed is None:
        source = resolve(model)
        return source, open_checkpoint(source.path)
    preset, folder = PRESETS.get(model.lower()), expanded(model)
    origin = f"synthetic: random weights, seed {seed}"
    if preset is not None:
        checkpoint = SyntheticCheckpoint(preset.config, seed)
        return ResolvedSource(f"{model_name(model)}-synthetic", checkpoint.path, origin, None), checkpoint
    if not (folder / "config.json").is_file():
        raise UserError(
            f"random weights (SYNTHETIC=1) need a config: MODEL {model!r} is neither a preset nor a folder with a "
            f"config.json. Presets: {', '.join(PRESETS)}"
        )
    config = read_config_file(folder / "config.json")
    checkpoint = SyntheticCheckpoint(config, seed, folder)
    return ResolvedSource(f"{model_name(model)}-synthetic", folder, origin, None), checkpoint


def opened_for(manifest: Manifest, model: str | None) -> Checkpoint:
    """Open the checkpoint that an artifact was exported from: `model`, or the source in its manifest.

    Raises UserError if it is another model, or if an adapter that was merged has changed.
    """
    source = manifest.source
    checkpoint = open_model(model or source.model, source.seed if model is None else None)[1]
    exported = LlamaConfig.from_dict(dict(manifest.config))
    ours = checkpoint.config
    # The export had the option ROPE_SCALING, which may repeat the config's own scaling and raise its maximum.
    if (exported.rope_scaling, exported.max_position_embeddings) != (ours.rope_scaling, ours.max_position_embeddings):
        rope = {"rope_type": "default"} if exported.rope_scaling is None else exported.rope_scaling.to_dict()
        checkpoint.config = ours.with_rope_scaling(rope)
    checkpoint = merged(checkpoint, [(adapter.folder, adapter.scale) for adapter in source.adapters])
    if isinstance(checkpoint, MergedCheckpoint):
        for found, adapter in zip(checkpoint.adapters, source.adapters, strict=True):
            if found.revision != adapter.revision:
                raise UserError(
                    f"the adapter {adapter.folder} was changed after {manifest.name} was exported. Export again"
                )
    if checkpoint.config.to_dict() != manifest.config:
        raise UserError(f"{checkpoint.path} is another model than the one that {manifest.name} was exported from")
    return checkpoint
