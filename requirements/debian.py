"""Unpacks packages of a Debian release into a folder, for another architecture or an older C library.

The packages come from the mirror that apt is configured with, checked by the keys of the Debian archive. apt works with
its own folders here: nothing of the machine's packages changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # platform.machine() -> Debian's name
DONE = ".unpacked"


def require(commands: dict[str, str]) -> None:
    """Install the packages (command -> Debian's package) of the commands that are missing, or end with the remedy."""
    missing = sorted({package for command, package in commands.items() if shutil.which(command) is None})
    if not missing:
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"error: {', '.join(missing)} is not installed, and needed here. Run as root: {' '.join(install)}")
    subprocess.run(["apt-get", "update"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)


def mirror() -> str:
    """Return the address of the Debian archive that apt is configured with. Ends the process if apt has none."""
    listed = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"]
    if shutil.which("apt-get") is None or not KEYS.is_file():
        sys.exit(f"error: no apt-get, or no {KEYS}: the wheels are built on Debian 12 or later")
    for attempt in range(2):
        for line in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines():
            origin, label, address = line.split("|")
            if (origin, label) == ("Debian", "Debian"):
                return address
        if attempt == 0 and os.geteuid() == 0:  # a fresh container has no lists, and so no origins
            subprocess.run(["apt-get", "update"], check=True, stdout=subprocess.DEVNULL)
    sys.exit("error: apt knows no Debian archive (or has no lists of it): run apt-get update on a Debian host")


def unpack(folder: Path, release: str, machine: str, packages: Sequence[str]) -> Path:
    """Unpack packages with everything that they depend on, unless that was done before. Returns the folder."""
    wanted = f"{release} {machine} {' '.join(packages)}\n"
    done = folder / DONE
    if done.is_file() and done.read_text() == wanted:
        return folder
    address = mirror()
    shutil.rmtree(folder, ignore_errors=True)
    work = folder.with_name(folder.name + ".apt").absolute()
    for name in ("lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True, exist_ok=True)
    (work / "status").touch()
    architecture = ARCHITECTURES[machine]
    (work / "sources.list").write_text(f"deb [signed-by={KEYS} arch={architecture}] {address} {release} main\n")
    settings = {
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    subprocess.run([*apt, "update"], check=True)
    install = ["install", "--download-only", "--yes", "--no-install-recommends", *packages]
    subprocess.run([*apt, *install], check=True, stdout=subprocess.DEVNULL)
    for archive in sorted((work / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", archive, folder], check=True)
    _relative_links(folder)
    shutil.rmtree(work)
    done.write_text(wanted)
    return folder


def _relative_links(folder: Path) -> None:
    """Make links such as /lib/x.so point into the folder, where a linker and an emulator find them."""
    for path in folder.rglob("*"):
        if path.is_symlink() and (target := path.readlink()).is_absolute():
            path.unlink()
            path.symlink_to(os.path.relpath(folder / target.relative_to("/"), path.parent))
