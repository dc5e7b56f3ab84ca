"""From the registry's wheel to one that pip installs for any Python: download, check, unpack, add the binding, pack."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from . import native
from .release import LOCAL_VERSION, UNUSED, VERSION, Release

PACKAGE = "mindspore_lite"
STAMP = "edgellama.json"  # in the installed package: records what it was built from
Say = Callable[[str], None]


def stamp(release: Release) -> dict[str, str]:
    """The properties of a build. An installed build is current if its recorded stamp equals this one."""
    return {
        "official_sha256": release.sha256,
        "binding_sha256": native.sources_digest(),
        "machine": release.machine,
    }


def download(release: Release, folder: Path) -> Path:
    """Download the official wheel with pip, from the index that pip uses. Raises UserError if that fails."""
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"),
        *("--only-binary=:all:", "--python-version", "3.7", "--platform", release.pip_platform),
        *("--dest", str(folder), f"mindspore-lite=={VERSION}"),
    ]
    if subprocess.run(command).returncode != 0:
        raise UserError(
            f"pip could not download mindspore-lite {VERSION}; its output is above. Without a network, download "
            f"the wheel elsewhere and pass it with --official FILE (its SHA-256 is {release.sha256})"
        )
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        raise UserError(f"pip left {len(found)} wheels in {folder} instead of one")
    return found[0]


def check(official: Path, release: Release) -> None:
    """Compare the file's SHA-256 with the known release. Raises UserError if it differs."""
    if not official.is_file():
        raise UserError(f"{official} is not a file")
    digest = hashlib.sha256()
    with official.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if found != release.sha256:
        raise UserError(
            f"{official.name} is not the mindspore-lite {VERSION} wheel for {release.machine}: "
            f"SHA-256 {found}, expected {release.sha256}. Download it again"
        )


def unpack(official: Path, tree: Path) -> Path:
    """Unpack everything except the unused libraries and the old binding. Returns the mindspore_lite folder."""
    with zipfile.ZipFile(official) as archive:
        for info in archive.infolist():
            name = Path(info.filename).name
            if name in UNUSED or name.startswith("_c_lite_wrapper."):
                continue
            archive.extract(info, tree)
    return tree / PACKAGE


def require_packer() -> None:
    """Raise UserError if the package that writes wheels is missing."""
    try:
        import wheel.wheelfile  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError("the Python package wheel is missing: pip install wheel") from error


def pack(tree: Path, out: Path, release: Release, *, compress: bool) -> Path:
    """Give the unpacked tree its new version and tag, and write it as a wheel into `out`. Returns the wheel."""
    from wheel.wheelfile import WheelFile

    tag = f"py3-none-linux_{release.machine}"  # the binding is loaded through ctypes
    (tree / PACKAGE / STAMP).write_text(json.dumps(stamp(release), indent=1) + "\n")

    info = tree / f"{PACKAGE}-{VERSION}.dist-info"
    metadata = (info / "METADATA").read_text()
    (info / "METADATA").write_text(metadata.replace(f"\nVersion: {VERSION}\n", f"\nVersion: {LOCAL_VERSION}\n", 1))
    (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nGenerator: edgellama\nRoot-Is-Purelib: false\nTag: {tag}\n")
    (info / "RECORD").unlink()  # WheelFile writes a new one
    info.rename(tree / f"{PACKAGE}-{LOCAL_VERSION}.dist-info")

    target = out / f"{PACKAGE}-{LOCAL_VERSION}-{tag}.whl"
    with WheelFile(target, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as file:
        file.write_files(str(tree))
    return target


def build(release: Release, official: Path | None, work: Path, out: Path, say: Say, *, compress: bool = False) -> Path:
    """Build the wheel. Returns its path.

    Args:
        release: the registry's wheel
        official: that wheel, already downloaded; None downloads it
        work: folder for temporary files
        out: folder for the new wheel
        say: called with progress lines
        compress: whether to compress the wheel

    Raises UserError if a tool, disk space or the download is missing, or if compiling fails.
    """
    if native.ready_made() is None:
        native.require_compiler()
    require_packer()
    need = 1_000_000 * (release.download_mb + 2 * release.installed_mb + 100)
    free = shutil.disk_usage(work).free
    if free < need:
        raise UserError(
            f"{work} has {free // 10**6} MB free, and the build temporarily needs {need // 10**6} MB: "
            "set TMPDIR to a folder with more space"
        )
    if official is None:
        say(f"downloading mindspore-lite {VERSION} ({release.download_mb} MB)")
        official = download(release, work)
    check(official, release)
    say("unpacking it")
    tree = work / "tree"
    package = unpack(official, tree)
    if native.ready_made() is None:
        say("compiling its binding")
    native.add_binding(package, work)
    try_import(tree)
    say("packing the new wheel")
    return pack(tree, out, release, compress=compress)


def try_import(tree: Path | None = None) -> None:
    """Import mindspore_lite in a separate process, from `tree` or as installed. Raises UserError if that fails."""
    environment = dict(os.environ)
    if tree is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-c", "import mindspore_lite; mindspore_lite.Context(); mindspore_lite.Model()"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-5:] or [f"exit status {done.returncode}"]
        raise UserError("mindspore_lite cannot be imported:\n" + "\n".join(said))
