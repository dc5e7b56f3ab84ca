"""The command `build-kernels`: builds the operator package from the sources that this package contains, with CANN."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from edgellama import kernels
from edgellama.errors import UserError
from edgellama.kernels.ascend.chips import CHIPS

SCRIPT = Path(kernels.__file__).parent / "ascend" / "build.sh"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgellama build-kernels`: those of build.sh."""
    parser.add_argument("--chips", help=f'chips to compile for, separated by ";" (default: {";".join(CHIPS)})')
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--install-path", type=Path, help="folder to install in (default: CANN's opp/vendors)")
    where.add_argument("--no-install", action="store_true", help="only build the package")
    parser.add_argument("--build-dir", type=Path, default=Path("build"), help="build there (default: %(default)s)")
    parser.set_defaults(run=run_build_kernels)


def run_build_kernels(arguments: argparse.Namespace) -> None:
    """Run build.sh. Raises UserError if it fails; it has printed why."""
    command = ["bash", str(SCRIPT), "--build-dir", str(arguments.build_dir)]
    if arguments.chips is not None:
        command += ["--chips", arguments.chips]
    if arguments.install_path is not None:
        command += ["--install-path", str(arguments.install_path)]
    if arguments.no_install:
        command.append("--no-install")
    status = subprocess.run(command, check=False).returncode
    if status:
        raise UserError(
            f"the operator package was not built (build.sh ended with status {status}); its messages say why"
        )
