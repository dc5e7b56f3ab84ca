"""Artifacts and sessions that earlier releases wrote load and give the same tokens, or are refused with a remedy.

CONTRIBUTING.md, "Compatibility", has the policy. tests/data/README.md says where the files come from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import edgellama
from edgellama.artifact.manifest import FORMAT_VERSION, Artifact, digest
from edgellama.conversation.session_file import FORMAT, WITH_ADAPTER
from edgellama.errors import UserError
from edgellama.kernels.cpu.library import ABI, OLDEST_ABI
from support.compatibility import (
    ADAPTER,
    ADAPTER_SESSION,
    COUNT,
    EXPECTED,
    FOLDER,
    KINDS,
    MERGED,
    PROMPT,
    artifacts,
    load_adapted,
    load_artifacts,
    releases,
)

ALL = [path for release in releases() for path in artifacts(release)]
CURRENT = FOLDER / edgellama.__version__


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text(encoding="utf-8"))


def session_format(artifact: Path) -> str:
    with safe_open(artifact.with_name(artifact.name + ".session"), "numpy") as file:
        return file.metadata()["format"]


@pytest.fixture(scope="module")
def answers() -> dict[Path, dict[str, Any]]:
    """What the runtime makes of every artifact and its session."""
    return load_artifacts(ALL)


@pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_artifact_gives_the_tokens_of_its_release_or_is_refused(
    answers: dict[Path, dict[str, Any]], path: Path
) -> None:
    written = manifest(path)
    if written["kernel_abi"] not in (None, *range(OLDEST_ABI, ABI + 1)):
        error = answers[path]["error"]
        assert f"kernel_abi is {written['kernel_abi']}" in error
        assert str(ABI) in error and "xport again" in error
        return
    expected = json.loads((path.parent / EXPECTED).read_text(encoding="utf-8"))
    assert expected["prompt"] == PROMPT
    assert answers[path]["tokens"] == expected["tokens"][path.name]
    assert len(answers[path]["tokens"]) == COUNT


@pytest.mark.parametrize(
    "path",
    [path for path in ALL if path.with_name(path.name + ".session").exists()],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_a_session_continues_or_is_refused(answers: dict[Path, dict[str, Any]], path: Path) -> None:
    answer, found = answers[path], session_format(path)
    if "error" in answer:
        return  # its artifact is refused, as the other test checks
    if found != FORMAT:
        assert found in answer["session error"] and FORMAT in answer["session error"]
        assert "egin a new session" in answer["session error"]
        return
    expected = json.loads((path.parent / EXPECTED).read_text(encoding="utf-8"))["tokens"][path.name]
    assert answer["session"] == PROMPT + expected[:4]
    assert answer["continued"] == expected[4:8]


def test_a_session_with_an_adapter_continues() -> None:
    found = load_adapted(CURRENT)
    expected = json.loads((CURRENT / EXPECTED).read_text(encoding="utf-8"))
    with safe_open(CURRENT / ADAPTER_SESSION, "numpy") as file:
        assert file.metadata()["format"] == WITH_ADAPTER
    assert found["ids"][: len(PROMPT)] == PROMPT
    assert found["continued"] == expected[ADAPTER] != found["base"]


def test_every_version_is_among_the_data() -> None:
    """A change of a version adds the files of the new one: see tests/data/README.md."""
    assert {path.name for path in artifacts(CURRENT)} == set(KINDS)
    for path in artifacts(CURRENT):
        written = manifest(path)
        assert written["format_version"] == (FORMAT_VERSION if path.name == MERGED else 1)
        assert written["kernel_abi"] == KINDS[path.name][-1]
        assert session_format(path) == FORMAT
    assert {manifest(path)["format_version"] for path in ALL} == set(range(1, FORMAT_VERSION + 1))
    assert {manifest(path)["kernel_abi"] for path in ALL} == {None, *range(1, ABI + 1)}
    formats = {session_format(path) for path in ALL if path.with_name(path.name + ".session").exists()}
    assert formats == {f"edgellama session {number + 1}" for number in range(int(FORMAT.split()[-1]))}


def test_a_manifest_without_optional_fields_loads(tmp_path: Path) -> None:
    """A field with a default may be missing: an exporter that did not know it has written the manifest."""
    source = CURRENT / "portable-fp32"
    for file in source.rglob("*"):
        if file.is_file() and file.name != "manifest.json":
            copy = tmp_path / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    values = manifest(source)
    del values["digest"], values["converted"], values["source"]["seed"]
    assert all(graph.pop("data", None) is not None for graph in values["graphs"])
    target = tmp_path / "manifest.json"
    target.write_text(json.dumps({**values, "digest": digest(values)}), encoding="utf-8")
    opened = Artifact.open(tmp_path).manifest
    assert (opened.converted, opened.source.seed, opened.graphs[0].data) == (None, None, ())
    del values["kernel_abi"]
    target.write_text(json.dumps({**values, "digest": digest(values)}), encoding="utf-8")
    with pytest.raises(UserError, match=r"kernel_abi.*Export again with this release"):
        Artifact.open(tmp_path)
