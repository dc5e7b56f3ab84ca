"""python tests/peers/install.py FOLDER: makes a virtual environment with every peer that can be installed here.

Each peer is installed separately, so that a failure does not affect the others. FOLDER/absent.json keeps the reason for
each peer that could not be installed, and the comparison reports it. Peers that are installed already do not change.
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
# This release has a build without CUDA; the newest one brings gigabytes of it.
TORCH = ["torch==2.13.0", "transformers<5.6"]
# engine -> (requirements for pip, Python code that checks the installation)
PEERS = {
    "llama.cpp": (["llama-cpp-python==0.3.36"], "import llama_cpp"),
    "openvino": (
        ["openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", *TORCH],
        "import openvino_genai, optimum.intel, importlib.util as u; assert not u.find_spec('torchvision')",
    ),
    "onnxruntime": (["onnxruntime-genai==0.18.0", "onnx-ir", *TORCH], "import onnxruntime_genai, onnx_ir, torch"),
    "pytorch": (TORCH, "import torch, transformers"),
}
# optimum-intel requires it, a text model does not use it, and it cannot be imported with a torch without CUDA.
UNWANTED = "torchvision"
CLANGS = ("clang++", *(f"clang++-{version}" for version in range(22, 15, -1)))


def install(folder: Path) -> dict[str, str]:
    """Make or complete the environment. Returns engine -> reason for each peer that could not be installed."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    absent: dict[str, str] = {}
    for engine, (requirements, check) in PEERS.items():
        if subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0:
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
    """pip options and environment variables that compile llama.cpp for this CPU, including AMX.

    Clang is used if it is installed. GCC 12 and older compile the AMX tile configuration wrongly (the program crashes),
    so the AMX part is left out with them, which more than doubles the time of a prompt.
    """
    native = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"
    settings = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    clang = next((name for name in CLANGS if shutil.which(name)), None)
    if clang:
        settings.update(CXX=clang, CC=clang.replace("clang++", "clang"))
    elif gcc_major() <= 12:
        settings.update(CXXFLAGS="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16", CFLAGS="-mno-amx-tile -mno-amx-int8")
    # without the cache: it may hold a wheel that another compiler built
    return ["--no-cache-dir", "--no-binary", "llama-cpp-python"], {**settings, "CMAKE_ARGS": native}


def gcc_major() -> int:
    """GCC's major version; 99 without GCC or on a CPU without AMX, where the version does not matter."""
    if not shutil.which("gcc") or "amx" not in Path("/proc/cpuinfo").read_text():
        return 99
    found = re.match(r"\d+", subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=True).stdout)
    return int(found.group()) if found else 99


def not_installed(python: Path) -> dict[str, str]:
    """engine -> the reason that `install` recorded for a peer that is absent."""
    file = python.parent.parent / ABSENT
    if not python.exists():
        return dict.fromkeys(PEERS, f"{python} does not exist; `make bench-peers` creates it")
    return dict(json.loads(file.read_text())) if file.exists() else {}


if __name__ == "__main__":
    install(Path(sys.argv[1]))
