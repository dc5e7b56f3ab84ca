"""Artifacts, kernel libraries and session files of other versions than this release reads."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from support.compatibility import COUNT, EXPECTED, FOLDER, PROMPT, artifacts, releases
from support.manifest_edits import rewrite
from torture.case import Case, FaultClass
from torture.forked import in_child
from torture.outcomes import Outcome

NEAR = (-1, 0, 1, 2, 3, 4, 5)  # around the versions of all formats
FAR = (-(1 << 63), 7, 99, 255, 256, 1 << 31, (1 << 32) + 2, (1 << 63) - 1, 1 << 63, 10**300)
WRONG = (None, True, False, 1.0, 2.5, 1e300, "1", "2", "", "3.0", [], [1], {}, {"version": 1})
LIBRARY, PLUGIN = "libedgellama_cpu.so", "libedgellama_lite.so"


def loaded(folder: Path, expected: list[int], supported: bool) -> Outcome:
    """Load an artifact and generate. Raises what the product raises."""
    from edgellama.model import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, threads=1)
    found = model.generate([PROMPT], max_new_tokens=COUNT, eos_token_id=()).tolist()[0][len(PROMPT) :]
    if not supported:
        return Outcome("silent", "loads, although this release does not read its version")
    return Outcome("harmless") if found == expected else Outcome("silent", "loads, and its tokens differ")


def in_range(value: Any, oldest: int, newest: int) -> bool:
    """Whether a version of a JSON file is one of those that are read."""
    return type(value) is int and oldest <= value <= newest


def version(rng: random.Random) -> Any:
    """Return a version: often a near one."""
    return rng.choice(rng.choice((NEAR, NEAR, FAR, WRONG)))


@cache
def stored() -> list[tuple[Path, list[int]]]:
    """Return every artifact of tests/data/compatibility, with the tokens of its release."""
    found = []
    for release in releases():
        path = release / EXPECTED
        tokens = json.loads(path.read_text())["tokens"] if path.exists() else {}
        found += [(folder, tokens.get(folder.name, [])) for folder in artifacts(release)]
    return found


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return the values of a manifest."""
    values: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return values


def readable(values: dict[str, Any]) -> bool:
    """Whether this release says that it reads an artifact (CONTRIBUTING.md, "Compatibility")."""
    from edgellama.artifact.manifest import FORMAT_VERSION
    from edgellama.kernels.cpu.library import ABI, OLDEST_ABI

    oldest = 2 if values["source"].get("adapters") else 1
    abi = values["opset"] != "cpu" or in_range(values.get("kernel_abi"), OLDEST_ABI, ABI)
    return abi and in_range(values.get("format_version"), oldest, FORMAT_VERSION)


def artifact_versions(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """An artifact of this or an earlier release, as it is, or with other versions under a fitting digest."""
    import edgellama.model
    from edgellama.backend.lite_graph import import_lite

    assert edgellama.model and import_lite()
    for case in cases:
        source, expected = stored()[case.number % len(stored())]
        folder = Path(shutil.copytree(source, case.folder / source.name))
        untouched = case.number < len(stored())
        if not untouched:
            fields = case.rng.choice((["format_version"], ["kernel_abi"], ["format_version", "kernel_abi"]))
            changes = {name: version(case.rng) for name in fields}
            if case.rng.random() < 0.1:
                values = manifest_of(folder)
                del values[fields[0]], values["digest"]
                _write(folder, values)
            else:
                rewrite(folder, **changes)
        supported = readable(manifest_of(folder))
        outcome = in_child(
            lambda folder=folder, expected=expected, supported=supported: loaded(folder, expected, supported),
            names=["format_version", "kernel_abi", "graphs/", "manifest.json"],
        )
        if untouched and supported and outcome.kind == "clear":
            outcome = Outcome("unclear", f"(refused, although its version is read) {outcome.detail}")
        yield outcome


def _write(folder: Path, values: dict[str, Any]) -> None:
    from edgellama.artifact.manifest import MANIFEST, digest

    (folder / MANIFEST).write_text(json.dumps({**values, "digest": digest(values)}))


def libraries(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """The kernels' library, or its plugin for MindSpore Lite, is missing, damaged, or of another ABI."""
    import edgellama.model
    from edgellama.artifact.manifest import Artifact
    from edgellama.backend.lite_graph import import_lite
    from edgellama.kernels.cpu import library

    assert edgellama.model and Artifact and import_lite()
    source, expected = next(x for x in stored() if x[0].name == "cpu-int8" and x[1])
    for case in cases:
        folder = case.folder / "kernels"
        folder.mkdir()
        for name in (LIBRARY, PLUGIN):
            shutil.copy(library.PATH.with_name(name), folder)
        name = case.rng.choice((LIBRARY, LIBRARY, PLUGIN))
        same = _damage_library(folder / name, shared, case.rng)

        def load(folder: Path = folder, same: bool = same) -> Outcome:
            library.PATH = folder / LIBRARY
            library.library.__wrapped__.__defaults__ = (library.PATH,)
            return loaded(source, expected, same)

        yield in_child(load, names=[LIBRARY, PLUGIN, "kernels"])


def _damage_library(path: Path, shared: Path, rng: random.Random) -> bool:
    """Replace a library by something else, in another file. Returns whether it still is the right one."""
    from edgellama.kernels.cpu.library import ABI

    kind = rng.randrange(6)
    if kind == 5:
        return True
    data = path.read_bytes()
    path.unlink()  # kind 0: missing
    if kind == 1:
        path.write_bytes(rng.choice((b"", b"x", b"\x7fELF", b"GROUP ( nothing )\n", data[:64], data[: len(data) // 2])))
    elif kind == 2:
        path.mkdir()
    elif kind == 3:  # a library of another program
        shutil.copy(_compiled(shared, "int other(void) { return 1; }"), path)
    elif kind == 4:
        abi = rng.choice((*(n for n in NEAR if n != ABI), 99, -(1 << 31), (1 << 31) - 1))
        shutil.copy(_compiled(shared, f"int edgellama_abi(void) {{ return {abi}; }}"), path)
    return False


@cache
def _compiled(folder: Path, code: str) -> Path:
    """Return a shared library with this C function."""
    path = folder / f"lib{abs(hash(code))}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=code.encode(), check=True)
    return path


def session_versions(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """A session file of another format, with a fitting checksum, or of another artifact."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    import edgellama.model
    from edgellama.backend.lite_graph import import_lite
    from edgellama.conversation.session_file import FORMAT, checksum

    assert edgellama.model and import_lite()
    files = sorted(FOLDER.glob("*/*.session"))
    folders = [folder for folder, tokens in stored() if tokens]
    for case in cases:
        folder, path = case.rng.choice(folders), case.rng.choice(files)
        if case.rng.random() < 0.5:
            path = folder.with_name(folder.name + ".session")
        with safe_open(path, "numpy") as file:
            notes, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if case.number >= len(folders):
            kind, number = FORMAT.rsplit(" ", 1)
            other = case.rng.choice([f"{kind} {version(case.rng)}", number, kind, "", f"{FORMAT} ", FORMAT.upper()])
            notes["format"] = other
        notes["sha256"] = checksum(notes, arrays)
        changed = case.folder / "x.session"
        save_file(arrays, changed, notes)
        same = notes["format"] == FORMAT and path == folder.with_name(folder.name + ".session")

        def restore(folder: Path = folder, changed: Path = changed, same: bool = same) -> Outcome:
            from edgellama.model import LlamaForCausalLM

            session = LlamaForCausalLM.from_pretrained(folder, threads=1).session(changed)
            tokens = dict(stored())[folder]
            found = session.generate([], max_new_tokens=4, eos_token_id=()).tolist()
            if not same:
                return Outcome("silent", "loads, although it is of another format or artifact")
            return Outcome("harmless") if found == tokens[4:8] else Outcome("silent", "continues with other tokens")

        yield in_child(restore, ["x.session"])


CLASSES = (
    FaultClass(
        "artifact-versions",
        "every stored artifact of earlier releases, then format_version and kernel_abi: older, newer, wrong types",
        "the release reads the version (CONTRIBUTING.md); the tokens are those of the release that wrote the artifact",
        300,
        60,
        artifact_versions,
    ),
    FaultClass(
        "kernel-libraries",
        "the kernels' library or its plugin: missing, cut off, of another program, of another ABI",
        "both are copies of the right ones, and the tokens are those of the release that wrote the artifact",
        100,
        25,
        libraries,
    ),
    FaultClass(
        "session-versions",
        "sessions of another format under a fitting checksum, or of another artifact",
        "format and artifact are right, and the text continues with the tokens of the release that wrote it",
        150,
        20,
        session_versions,
    ),
)
