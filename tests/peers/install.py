"""python tests/peers/install.py FOLDER: a virtual environment with every peer that can be installed here.

Each peer is installed by itself, so that one which cannot be had costs the others nothing; why it could not is kept in
FOLDER/absent.json, and the comparison reports it. What is there already is left alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ABSENT = "absent.json"
# This release has a build without CUDA, and the newest brings gigabytes of it.
TORCH = ["torch==2.13.0", "transformers<5.6"]
# engine -> (what pip installs, what is tried to see that it works)
PEERS = {
    "llama.cpp": (["llama-cpp-python==0.3.36"], "import llama_cpp"),
    "openvino": (
        ["openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", *TORCH],
        "import openvino_genai, optimum.intel, importlib.util as u; assert not u.find_spec('torchvision')",
    ),
    "onnxruntime": (["onnxruntime-genai==0.18.0", "onnx-ir", *TORCH], "import onnxruntime_genai, onnx_ir, torch"),
    "pytorch": (TORCH, "import torch, transformers"),
}
# Required by optimum-intel, unused for a text model, and not importable beside a torch built without CUDA.
UNWANTED = "torchvision"
CLANGS = ("clang++", *(f"clang++-{version}" for version in range(22, 15, -1)))


def install(folder: Path) -> dict[str, str]:
    """Make or complete the environment; returns engine -> reason for those that are absent."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    absent: dict[str, str] = {}
    for engine, (requirements, trial) in PEERS.items():
        if subprocess.run([python, "-c", trial], capture_output=True, check=False).returncode == 0:
            continue
        print(f"installing {engine}: {' '.join(requirements)}", file=sys.stderr)
        options, environment = ([], {}) if engine != "llama.cpp" else build_settings()
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", *options, *requirements],
            capture_output=True, text=True, check=False, env={**os.environ, **environment},
        )  # fmt: skip
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            absent[engine] = (lines or done.stderr.splitlines() or ["pip failed"])[-1].strip()
            print(f"{engine} is absent: {absent[engine]}", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", UNWANTED], capture_output=True, check=False)
    (folder / ABSENT).write_text(json.dumps(absent, indent=1) + "\n")
    return absent


def build_settings() -> tuple[list[str], dict[str, str]]:
    """pip options and environment that compile llama.cpp for this CPU, AMX included.

    Clang where there is one: GCC 12 compiles the AMX tile configuration wrongly (the program crashes), so with a GCC
    that old its AMX part is left out, which more than doubles the time of a prompt.
    """
    native = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"
    settings = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    clang = next((name for name in CLANGS if shutil.which(name)), None)
    if clang:
        settings.update(CXX=clang, CC=clang.replace("clang++", "clang"))
    elif gcc_major() <= 12:
        settings.update(CXXFLAGS="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16", CFLAGS="-mno-amx-tile -mno-amx-int8")
    # no cache: a wheel built earlier, by another compiler, would be taken from it
    return ["--no-cache-dir", "--no-binary", "llama-cpp-python"], {**settings, "CMAKE_ARGS": native}


def gcc_major() -> int:
    if not shutil.which("gcc") or "amx" not in Path("/proc/cpuinfo").read_text():
        return 99
    found = re.match(r"\d+", subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=True).stdout)
    return int(found.group()) if found else 99


def not_installed(python: Path) -> dict[str, str]:
    """engine -> why it is absent, as `install` left it."""
    file = python.parent.parent / ABSENT
    if not python.exists():
        return dict.fromkeys(PEERS, f"{python} does not exist; `make bench-peers` makes it")
    return dict(json.loads(file.read_text())) if file.exists() else {}


if __name__ == "__main__":
    install(Path(sys.argv[1]))
