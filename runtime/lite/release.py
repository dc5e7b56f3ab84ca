"""The only MindSpore Lite release in the registry: its wheels, and the files that the installed build leaves out."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from ..errors import UserError

VERSION = "2.0.0"
# The local label distinguishes this build from an official one of the same version.
LABEL = "edgellama.1"
LOCAL_VERSION = f"{VERSION}+{LABEL}"


@dataclass(frozen=True)
class Release:
    """One wheel of the registry.

    Attributes:
        machine: platform.machine() of the wheel's architecture
        pip_platform: the value of pip's --platform that selects it
        sha256: of the file
        download_mb, installed_mb: sizes in megabytes (10^6 bytes)
    """

    machine: str
    pip_platform: str
    sha256: str
    download_mb: int
    installed_mb: int


RELEASES = {
    release.machine: release
    for release in (
        Release(
            "x86_64",
            "manylinux1_x86_64",
            "199cd0605cc985b88eddb273db9dfe9000a585ba10ca2292b6b36ebfff07b3ec",
            169,
            360,
        ),
        # Tagged "any" in the registry, but it holds aarch64 libraries only.
        Release(
            "aarch64",
            "manylinux2014_aarch64",
            "9006b56a0285833802b4880f34cbce5f94111ef5ca4071d5df5c61e8c2a3a6f7",
            56,
            180,
        ),
    )
}

# Neither the CPU nor the Ascend path loads these: the CUDA backend, a library that needs Python 3.7, and one that no
# other file refers to. On x86-64 they are 150 of 490 MB.
UNUSED = (
    "libtransformer-shared.so",
    "libtensorrt_plugin_python.so",
    "libdvpp_utils.so",
    "liblite-unified-executor.so",
)


def release_for_this_machine() -> Release:
    """The wheel for this machine. Raises UserError if none exists."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in RELEASES:
        raise UserError(
            f"no mindspore-lite {VERSION} wheel exists for {sys.platform} on {machine}; "
            f"it exists for linux on {' and '.join(RELEASES)}"
        )
    return RELEASES[machine]
