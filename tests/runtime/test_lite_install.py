"""`python -m edgellama.lite`: what it builds, what it does not change, and its errors. The tests download nothing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgellama.errors import UserError
from edgellama.lite import __main__ as command
from edgellama.lite import native, wheel
from edgellama.lite.release import LOCAL_VERSION, RELEASES, VERSION, Release, release_for_this_machine
from support.child import run_child


@pytest.fixture
def official(tmp_path: Path) -> tuple[Path, Release]:
    """A small imitation of the registry's wheel, and its Release record."""
    path = tmp_path / "download" / f"mindspore_lite-{VERSION}-cp37-none-any.whl"
    path.parent.mkdir()
    info = f"mindspore_lite-{VERSION}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mindspore_lite/__init__.py", "class Context: pass\nclass Model: pass\n")
        for library in ("_c_lite_wrapper.cpython-37m-x86_64-linux-gnu.so", "libtransformer-shared.so", "libkept.so"):
            archive.writestr(f"mindspore_lite/lib/{library}", "not a library")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: mindspore-lite\nVersion: {VERSION}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path, replace(release_for_this_machine(), sha256=digest)


@pytest.fixture
def without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compile_binding", lambda *_: None)
    monkeypatch.setattr(native, "WRAPPER", Path(os.devnull))  # an empty module: no library is there to load


@dataclass
class Installed:
    """Imitates an installed distribution."""

    version: str
    folder: Path = Path("/nonexistent")

    def locate_file(self, path: str) -> Path:
        return self.folder / path


def test_the_installed_build_is_current_and_a_second_install_does_nothing() -> None:
    before = importlib.metadata.distribution("mindspore-lite")
    library = Path(str(before.locate_file("mindspore_lite/__init__.py")))
    stat = library.stat()
    done = run_child("-m", "edgellama.lite", "install")
    assert "is already installed" in done.stdout or "nothing to do" in done.stdout
    assert library.stat().st_mtime_ns == stat.st_mtime_ns


@pytest.mark.usefixtures("without_compiling")
@pytest.mark.parametrize("compress", [False, True])
def test_new_wheel_is_one_that_pip_installs(official: tuple[Path, Release], tmp_path: Path, compress: bool) -> None:
    path, release = official
    messages: list[str] = []
    built = wheel.build(release, path, tmp_path, tmp_path, messages.append, compress=compress)
    assert built.name == f"mindspore_lite-{LOCAL_VERSION}-py3-none-linux_{release.machine}.whl"
    assert messages == [
        "unpacking it",
        "compiling its binding",
        "packing the new wheel",
    ]
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, built], check=True
    )
    (found,) = importlib.metadata.distributions(path=[str(target)])
    assert found.version == LOCAL_VERSION
    assert json.loads((target / "mindspore_lite" / wheel.STAMP).read_text()) == wheel.stamp(release)
    assert {p.name for p in (target / "mindspore_lite" / "lib").iterdir()} >= {"libkept.so", "_c_lite_wrapper.py"}
    assert not {p.name for p in (target / "mindspore_lite" / "lib").glob("*cpython*.so")}


def test_a_ready_made_library_needs_no_compiler(
    official: tuple[Path, Release], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an installed wheel of this package, on a host without a compiler."""
    path, release = official
    ready = tmp_path / "ready" / native.LIBRARY
    ready.parent.mkdir()
    ready.write_bytes(b"the library")
    monkeypatch.setattr(native, "WRAPPER", Path(os.devnull))
    monkeypatch.setattr(native, "ready_made", lambda: ready)
    monkeypatch.setattr(native, "compile_binding", refuse)
    monkeypatch.setattr(native, "require_compiler", refuse)
    messages: list[str] = []
    built = wheel.build(release, path, tmp_path, tmp_path, messages.append)
    assert messages == ["unpacking it", "packing the new wheel"]
    with zipfile.ZipFile(built) as archive:
        assert archive.read(f"mindspore_lite/lib/{native.LIBRARY}") == b"the library"


def test_a_checkout_has_no_ready_made_library_and_the_two_halves_agree_on_its_name() -> None:
    assert native.ready_made() is None
    assert f'LIBRARY = "{native.LIBRARY}"' in native.WRAPPER.read_text()


def test_installed_build_of_other_sources_is_not_current(tmp_path: Path) -> None:
    found = Installed(LOCAL_VERSION, tmp_path)
    assert not command.is_current(found)
    (tmp_path / "mindspore_lite").mkdir()
    written = wheel.stamp(release_for_this_machine())
    for changed in (written, {**written, "machine": "riscv64"}, {**written, "binding_sha256": "0"}):
        (tmp_path / "mindspore_lite" / wheel.STAMP).write_text(json.dumps(changed))
        assert command.is_current(found) == (changed == written)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mindspore_lite-2.0.0-cp37-none-any.whl"
    path.write_bytes(b"cut")
    with pytest.raises(UserError, match=f"SHA-256 {hashlib.sha256(b'cut').hexdigest()}, expected"):
        wheel.check(path, release_for_this_machine())
    with pytest.raises(UserError, match="is not a file"):
        wheel.check(tmp_path / "none.whl", release_for_this_machine())


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("must not be reached")


def test_official_package_that_imports_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "installed", lambda: Installed("2.3.0"))
    monkeypatch.setattr(wheel, "build", refuse)
    monkeypatch.setattr(wheel, "try_import", lambda: None)
    assert command.main(["install"]) == 0
    assert "official version 2.3.0 found; nothing to do" in capsys.readouterr().out


def test_official_package_that_does_not_import_is_named_and_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise UserError("mindspore_lite cannot be imported:\nlibascendcl.so: cannot open")

    monkeypatch.setattr(command, "installed", lambda: Installed("2.3.0"))
    monkeypatch.setattr(wheel, "build", refuse)
    monkeypatch.setattr(wheel, "try_import", broken)
    assert command.main(["install"]) == 2
    error = capsys.readouterr().err
    assert "libascendcl.so" in error
    assert "pip uninstall mindspore-lite" in error


@pytest.mark.parametrize("broken", ["hash", "import"])
def test_failure_installs_nothing(
    official: tuple[Path, Release],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    broken: str,
) -> None:
    """A wrong file, and a binding that cannot be loaded: pip is never called, and no file is left behind."""
    path, release = official
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    real_run = subprocess.run

    def no_pip(arguments: list[str], **options: object) -> object:
        assert "pip" not in arguments
        return real_run(arguments, **options)

    monkeypatch.setattr(command, "installed", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(subprocess, "run", no_pip)
    if broken == "import":
        monkeypatch.setattr(command, "release_for_this_machine", lambda: release)

        def leave_rubbish(package: Path, _: Path) -> None:
            (package / "__init__.py").write_text("raise ImportError('no such symbol')\n")

        monkeypatch.setattr(native, "add_binding", leave_rubbish)
    assert command.main(["install", "--official", str(path)]) == 2
    assert {"hash": "SHA-256", "import": "no such symbol"}[broken] in capsys.readouterr().err
    assert list(scratch.iterdir()) == []


def test_without_a_compiler_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match=r"apt install g\+\+"):
        native.require_compiler()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="CXX=no-such-compiler"):
        native.require_compiler()


def test_without_the_packing_tool_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wheel.wheelfile", None)
    with pytest.raises(UserError, match="pip install wheel"):
        wheel.require_packer()


def test_the_error_for_a_full_disk_names_the_folder(
    official: tuple[Path, Release], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, release = official
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(UserError, match=r"1 MB free.*TMPDIR"):
        wheel.build(release, path, tmp_path, tmp_path, print)


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(UserError, match="riscv64; it exists for linux on x86_64 and aarch64"):
        release_for_this_machine()


def official_headers() -> Path:
    """The include root of the installed package; the aarch64 wheel's headers are the same files."""
    found = importlib.util.find_spec("mindspore_lite")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


@pytest.mark.slow
@pytest.mark.parametrize("machine", RELEASES)
def test_binding_compiles_without_a_warning(machine: str, tmp_path: Path) -> None:
    """Compiles for the other architecture with a cross compiler. Linking needs that architecture's wheel."""
    here = release_for_this_machine().machine
    compiler = "g++" if machine == here else f"{machine}-linux-gnu-g++"
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    for source in native.sources():
        if source.suffix == ".cpp":
            command_line = [compiler, *native.FLAGS, "-Werror", "-fsyntax-only", "-isystem", official_headers(), source]
            done = subprocess.run(command_line, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
