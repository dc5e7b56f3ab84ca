"""What a wheel of the package contains, and the tools of `make wheel`. `make check-install` installs a real one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgellama.lite import native
from support.child import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "requirements"))  # its scripts are no package
import debian

LIBRARIES = {
    "edgellama/kernels/cpu/libedgellama_cpu.so",
    "edgellama/kernels/cpu/libedgellama_lite.so",
    f"edgellama/lite/{native.LIBRARY}",
}
FOLDERS = {"runtime": "edgellama", "exporter": "edgellama/exporter", "kernels": "edgellama/kernels"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel with stand-ins of the libraries, built as requirements/build_wheels.py does."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in LIBRARIES:
        (folder / Path(name).name).write_bytes(name.encode())
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build", "--build-base", folder / "build"]
    command += ["egg_info", "--egg-base", folder, "bdist_wheel", "--bdist-dir", folder / "bdist"]
    command += ["--dist-dir", folder / "dist", "--plat-name", "manylinux_2_31_aarch64"]
    environment = {**os.environ, "EDGELLAMA_LIBRARIES": str(folder)}
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, capture_output=True)
    (path,) = (folder / "dist").iterdir()
    assert path.name.endswith("-py3-none-manylinux_2_31_aarch64.whl")  # every Python, this architecture
    return zipfile.ZipFile(path)


def test_a_wheel_has_the_ready_made_libraries(built: zipfile.ZipFile) -> None:
    assert {name for name in built.namelist() if name.endswith(".so")} == LIBRARIES
    for name in LIBRARIES:
        assert built.read(name) == name.encode()


def test_a_wheel_has_every_module_and_the_sources_of_the_operator_package(built: zipfile.ZipFile) -> None:
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    modules, sources = set(), set()
    for name in listed.stdout.splitlines():
        folder, _, rest = name.partition("/")
        if name.endswith(".py"):
            modules.add(f"{FOLDERS[folder]}/{rest}")
        elif name.startswith("kernels/ascend/") and "/standin/" not in name and not name.endswith(".md"):
            sources.add(f"{FOLDERS[folder]}/{rest}")
    assert {name for name in built.namelist() if name.endswith(".py")} == modules
    assert {name for name in built.namelist() if name.startswith("edgellama/kernels/ascend/")} - modules == sources
    assert len(sources) > 15
    script = built.getinfo("edgellama/kernels/ascend/build.sh")
    assert script.external_attr >> 16 & 0o111  # stays executable when pip unpacks it


def test_links_of_an_unpacked_system_point_into_it(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libx.so.1").write_text("x")
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/libx.so").symlink_to("/lib/libx.so.1")
    (tmp_path / "usr/lib/liby.so").symlink_to("libx.so")
    debian._relative_links(tmp_path)
    assert str((tmp_path / "usr/lib/libx.so").readlink()) == "../../lib/libx.so.1"
    assert (tmp_path / "usr/lib/liby.so").read_text() == "x"


def test_a_missing_tool_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match=r"needed here. Run as root: apt-get install .* some-package"):
        debian.require({"no-such-command": "some-package", "sh": "dash"})


@pytest.mark.parametrize("updated", [True, False])
def test_the_archive_is_the_one_that_apt_is_configured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updated: bool
) -> None:
    """A simulated apt-get without lists: it names an origin only after an update."""
    lists = tmp_path / "lists"
    script = f"""#!/bin/sh
case "$1" in
  update) {"touch " + str(lists) if updated else "true"} ;;
  indextargets) [ -e {lists} ] && echo "Other|Other|one/" && echo "Debian|Debian|mirror/" || echo "||mirror/" ;;
esac
"""
    (tmp_path / "apt-get").write_text(script)
    (tmp_path / "apt-get").chmod(0o755)
    (tmp_path / "keys").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(debian, "KEYS", tmp_path / "keys")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if updated:
        assert debian.mirror() == "mirror/"
    else:
        with pytest.raises(SystemExit, match="run apt-get update on a Debian host"):
            debian.mirror()


def test_without_apt_the_needed_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SystemExit, match="Debian 12 or later"):
        debian.mirror()
