"""`python -m edgellama.lite install`: makes `import mindspore_lite` work. `wheel` only writes the wheel."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import UserError
from . import wheel
from .release import LABEL, LOCAL_VERSION, release_for_this_machine


def say(text: str) -> None:
    """Print a progress line."""
    print(f"mindspore_lite: {text}", flush=True)


def installed() -> importlib.metadata.Distribution | None:
    """The mindspore-lite distribution of this environment, from this package or official; None if not installed."""
    try:
        return importlib.metadata.distribution("mindspore-lite")
    except importlib.metadata.PackageNotFoundError:
        return None


def is_current(found: importlib.metadata.Distribution) -> bool:
    """Whether the installed build was made by this package, from the present sources."""
    path = Path(str(found.locate_file(f"{wheel.PACKAGE}/{wheel.STAMP}")))
    return path.is_file() and json.loads(path.read_text()) == wheel.stamp(release_for_this_machine())


def install(official: Path | None) -> None:
    """Build the wheel and install it with pip, unless it is installed already or an official one works.

    official: the registry's wheel, already downloaded. Raises UserError if an official one is installed but broken, and
    if building or installing fails.
    """
    found = installed()
    if found is not None and not found.version.endswith(f"+{LABEL}"):
        try:
            wheel.try_import()
        except UserError as error:
            raise UserError(
                f"mindspore-lite {found.version} is installed but cannot be used. {error}\n"
                "Repair it, or remove it (pip uninstall mindspore-lite) and run this command again for a working build"
            ) from error
        say(f"official version {found.version} found; nothing to do")
        return
    if found is not None and is_current(found):
        say(f"{found.version} is already installed")
        return
    release = release_for_this_machine()
    with tempfile.TemporaryDirectory(prefix="mindspore_lite-") as folder:
        work = Path(folder)
        built = wheel.build(release, official, work, work, say)
        say("installing it with pip")
        command = [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
            *("--no-deps", "--no-index", "--force-reinstall", str(built)),
        ]
        if subprocess.run(command).returncode != 0:
            raise UserError("pip could not install the wheel; its output is above. A virtual environment may help")
    wheel.try_import()
    say(f"{LOCAL_VERSION} installed")


def write_wheel(official: Path | None, out: Path) -> None:
    """Write the wheel into folder `out`, for machines without a compiler (same architecture)."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mindspore_lite-") as folder:
        built = wheel.build(release_for_this_machine(), official, Path(folder), out, say, compress=True)
    say(f"wrote {built}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, or 2 for an error that the user can fix."""
    parser = argparse.ArgumentParser(prog="python -m edgellama.lite", description=__doc__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("install", "install it into this environment"), ("wheel", "write the wheel into a folder")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--official", type=Path, metavar="FILE", help="the registry's wheel, already downloaded")
        if name == "wheel":
            command.add_argument("out", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        if options.command == "install":
            install(options.official)
        else:
            write_wheel(options.official, options.out)
    except UserError as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
