"""Writes the lock files of this folder: `make lock`; README.md says what each file is for.

uv resolves all requirements of setup.cfg and pyproject.toml at once, for every environment of ENVIRONMENTS. So a
package has the same version in each file. At the end uv resolves test.txt again for each environment, from the files
alone. This finds a package that has no file for one of them.
"""

from __future__ import annotations

import argparse
import configparser
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
PYTHONS = ("3.10", "3.11", "3.12")
MACHINES = ("x86_64", "aarch64")
GLIBC = "manylinux_2_31"  # the oldest C library for which every package has a file
ENVIRONMENTS = tuple((python, machine) for python in PYTHONS for machine in MACHINES)
Environments = frozenset[tuple[str, str]]
EVERYWHERE = Environments(ENVIRONMENTS)


@dataclass(frozen=True)
class Lock:
    """One lock file.

    Attributes:
        extras: of setup.cfg; "" is the base install, "build" what pyproject.toml needs to build the package
        includes: the lock files that it includes, and whose packages it does not repeat
    """

    name: str
    extras: tuple[str, ...]
    includes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.txt"


LOCKS = (
    Lock("lock", ("lock",)),
    Lock("build", ("build",)),
    Lock("wheel", ("wheel",), ("build",)),
    Lock("runtime", ("", "lite"), ("build",)),
    Lock("serve", ("serve",), ("runtime",)),
    Lock("export", ("export",), ("runtime",)),
    Lock("test", ("plot", "test", "dev"), ("serve", "export")),
)
# Every virtual environment has its own pip, and a tool that needs pip must not replace it while it installs.
# torch comes by its pin in setup.cfg: with hashes, pip prefers a file of the registry to a CPU-only one of the machine.
NOT_LOCKED = {"pip", "torch"}
SOURCES = "yattag"  # has no wheel, in pure Python; cosmic-ray needs it. The Makefile builds it with the locked tools


@dataclass
class Package:
    """A locked version of a package, where it is used, and the hashes of all its files."""

    name: str
    version: str
    environments: Environments
    hashes: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.version

    def lines(self) -> str:
        """Returns the package in pip's format."""
        marker = marker_of(self.environments)
        first = f"{self.name}=={self.version}" + (f" ; {marker}" if marker else "")
        return " \\\n".join([first, *(f"    --hash={value}" for value in sorted(self.hashes))])


def requirements_of(extra: str) -> list[str]:
    """Returns the requirements of an extra of setup.cfg; `%(name)s` in it includes those of another extra."""
    if extra == "build":
        listed = re.search(r"^requires = (\[.*?\])", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
        assert listed, "pyproject.toml has no build-system.requires"
        return json.loads(listed[1])
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    text = config["options.extras_require"][extra] if extra else config["options"]["install_requires"]
    return [line for line in text.splitlines() if line.strip()]


def torch_pin() -> str:
    """Returns the requirement of torch in setup.cfg."""
    (pin,) = (line for line in requirements_of("test") if Requirement(line).name == "torch")
    return pin


def environments_of(marker: Any) -> Environments:
    """Returns the environments of ENVIRONMENTS that a marker of `packaging` admits; None admits all."""
    if marker is None:
        return EVERYWHERE
    fixed = {"implementation_name": "cpython", "platform_python_implementation": "CPython", "sys_platform": "linux"}
    fixed |= {"platform_system": "Linux", "os_name": "posix", "extra": ""}
    return Environments(
        (python, machine)
        for python, machine in ENVIRONMENTS
        if marker.evaluate(
            {**fixed, "python_version": python, "python_full_version": f"{python}.9", "platform_machine": machine}
        )
    )


def marker_of(environments: Environments) -> str:
    """Returns the shortest marker for a set of ENVIRONMENTS; empty for all of them."""
    pythons = {m: tuple(p for p in PYTHONS if (p, m) in environments) for m in MACHINES}
    alike = len(set(pythons.values())) == 1
    parts = []
    for machine in MACHINES[:1] if alike else MACHINES:
        if pythons[machine]:
            terms = [] if alike else [f"platform_machine == '{machine}'"]
            parts.append(" and ".join([*terms, *_python_terms(pythons[machine])]))
    return " or ".join(parts)


def _python_terms(pythons: tuple[str, ...]) -> list[str]:
    first, last = PYTHONS.index(pythons[0]), PYTHONS.index(pythons[-1])
    assert pythons == PYTHONS[first : last + 1], f"a package for Python {pythons}, which is not a range"
    if first == last:
        return [f"python_version == '{pythons[0]}'"]
    terms = [f"python_version >= '{pythons[0]}'"] if first else []
    return terms + ([f"python_version < '{PYTHONS[last + 1]}'"] if last + 1 < len(PYTHONS) else [])


def read_lock(text: str) -> list[Package]:
    """Returns the packages of a lock file's text, or of uv's output."""
    packages = []
    for entry in re.split(r"\n(?=[A-Za-z0-9])", text.replace("\\\n", " ")):
        line, *hashes = re.split(r"\s--hash=", entry.split("\n    #")[0].strip())
        if not line or line.startswith(("#", "-")):
            continue
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        environments = environments_of(requirement.marker)
        packages.append(Package(requirement.name, pin.version, environments, [value.strip() for value in hashes]))
    return packages


def run_uv(arguments: list[str], requirements: list[str] | None = None) -> str:
    """Runs `uv pip` and returns its output; `requirements` become its standard input."""
    command = [sys.executable, "-m", "uv", "pip", *arguments, "--no-python-downloads"]
    command += ["--only-binary", ":all:", "--no-binary", SOURCES]
    text = "\n".join(requirements) if requirements is not None else None
    done = subprocess.run(command, input=text, cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command[2:])} failed:\n{done.stderr}")
    return done.stdout


def resolve(requirements: list[str], output: Path, *options: str) -> list[Package]:
    """Resolves requirements for all ENVIRONMENTS, which pyproject.toml lists for uv.

    uv keeps the versions that `output` has before.
    """
    options = ("--universal", "--python-version", PYTHONS[0], "--generate-hashes", "--no-annotate", *options)
    run_uv(["compile", *options, "--output-file", str(output), "-"], requirements)
    merged: dict[tuple[str, str], Package] = {}
    for package in read_lock(output.read_text(encoding="utf-8")):
        if package.name not in NOT_LOCKED and package.environments:
            first = merged.setdefault(package.key, package)
            first.environments |= package.environments
    return list(merged.values())


def write(path: Path, includes: tuple[str, ...], packages: list[Package]) -> None:
    lines = ["# Written by `make lock`; README.md in this folder describes the lock files.\n"]
    lines += [f"-r {name}.txt\n" for name in includes]
    lines += [f"{package.lines()}\n" for package in sorted(packages, key=lambda package: package.key)]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(packages)} packages")


def covered(name: str, written: dict[str, list[Package]]) -> dict[tuple[str, str], Environments]:
    """Returns where each package of the lock file `name`, and of those that it includes, is installed."""
    found: dict[tuple[str, str], Environments] = {}
    for package in written[name]:
        found[package.key] = package.environments
    for include in next(lock for lock in LOCKS if lock.name == name).includes:
        for key, environments in covered(include, written).items():
            found[key] = found.get(key, Environments()) | environments
    return found


def check(path: Path) -> None:
    """Resolves a lock file in each environment, from its own lines."""
    for python, machine in ENVIRONMENTS:
        with tempfile.TemporaryDirectory() as folder:
            target = ["--target", folder, "--python-version", python, "--python-platform", f"{machine}-{GLIBC}"]
            excludes = Path(folder, "excludes.txt")
            excludes.write_text("\n".join(NOT_LOCKED), encoding="utf-8")
            files = ["--require-hashes", "--excludes", str(excludes), "-r", str(path)]
            run_uv(["install", "--dry-run", "--quiet", *target, *files])
        print(f"{path.relative_to(ROOT)}: every package has a file for Python {python} on {machine}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions; without it, keep what fits")
    upgrade = parser.parse_args().upgrade
    wanted = {lock.name: [r for extra in lock.extras for r in requirements_of(extra)] for lock in LOCKS}
    everything = sorted({requirement for listed in wanted.values() for requirement in listed})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = folder / "common.txt"
        kept = [lock.path.read_text(encoding="utf-8") for lock in LOCKS if lock.path.exists() and not upgrade]
        common.write_text("".join(re.sub("^-r .*$", "", text, flags=re.M) for text in kept), encoding="utf-8")
        resolved = resolve(everything, common)
        written: dict[str, list[Package]] = {}
        for lock in LOCKS:
            found = resolve(wanted[lock.name], folder / lock.path.name, "--constraints", str(common))
            included = [covered(name, written) for name in lock.includes]
            written[lock.name] = [
                package
                for package in found
                if not any(package.environments <= other.get(package.key, Environments()) for other in included)
            ]
    assert {package.key for listed in written.values() for package in listed} >= {package.key for package in resolved}
    for lock in LOCKS:
        write(lock.path, lock.includes, written[lock.name])
    check(FOLDER / "test.txt")


if __name__ == "__main__":
    main()
