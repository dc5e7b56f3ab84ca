"""Installs the aarch64 wheel on an emulated Debian without a compiler, and compares answers: `make check-wheel`.

The emulator is QEMU in user mode; the Python is Debian's. The answers are those of the small artifacts of
tests/data/compatibility, whose tokens an x86-64 host computed. MindSpore Lite is the registry's aarch64 release.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import build_wheels
import debian

MACHINE = "aarch64"
WORK = build_wheels.BUILD / MACHINE / "emulated"
RELEASE, PYTHON = "bookworm", "3.11"  # the oldest Debian release whose Python this package supports
EMULATOR = "qemu-aarch64-static"
PLATFORMS = ("manylinux_2_31", "manylinux_2_28", "manylinux_2_17", "manylinux2014", "linux")
ARTIFACTS = build_wheels.ROOT / "tests/data/compatibility"
ANSWER = """
import json, sys
import numpy as np
from edgellama import LlamaForCausalLM
from edgellama.kernels.cpu.library import available_isas
prompt, artifacts = json.loads(sys.argv[1])
tokens = {}
for name, folder in artifacts.items():
    model = LlamaForCausalLM.from_pretrained(folder)
    tokens[name] = model.generate(np.array([prompt]), max_new_tokens=16, do_sample=False)[0, len(prompt):].tolist()
print(json.dumps({"isas": available_isas(), "tokens": tokens}))
"""


def make_python() -> Path:
    """Unpack the emulated system. Returns a program that is its Python.

    The Python finds itself under the program's name, so that the processes that it starts are emulated too.
    """
    debian.require({EMULATOR: "qemu-user-static"})
    root = debian.unpack(WORK / "root", RELEASE, MACHINE, [f"python{PYTHON}", "libstdc++6", "libgomp1"])
    program = root / "usr/bin/emulated-python"
    binary = root / f"usr/bin/python{PYTHON}"
    program.write_text(
        f'#!/bin/sh\nexec "{shutil.which(EMULATOR)}" -cpu max -L "{root}" -0 "{program}" "{binary}" "$@"\n'
    )
    program.chmod(0o755)
    return program


def install(site: Path, *arguments: str | Path) -> None:
    """Install ready-made packages for the emulated Python, with this machine's pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--target", site]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--only-binary", ":all:", "--upgrade"]
    command += [word for platform in PLATFORMS for word in ("--platform", f"{platform}_{MACHINE}")]
    subprocess.run([*command, *arguments], check=True)


def check(made: Path) -> None:
    """Install the wheel and compare the answers. Ends the process if one differs."""
    python, site = make_python(), WORK / "site"
    shutil.rmtree(site, ignore_errors=True)
    install(site, "--require-hashes", "-r", build_wheels.ROOT / "requirements/runtime.txt")
    install(site, "--no-deps", "--no-index", made)
    # PATH has no compiler: the binding must be the wheel's.
    environment = {"PYTHONPATH": str(site), "PATH": str(WORK), "HOME": str(WORK), "OMP_NUM_THREADS": "2"}
    lite = [python, "-m", "edgellama.lite", "wheel", "--official", build_wheels.official(MACHINE), WORK / "lite"]
    subprocess.run(lite, check=True, env=environment, cwd=WORK)
    install(site, "--no-deps", "--no-index", *(WORK / "lite").glob("*.whl"))

    folder = ARTIFACTS / _version()
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    artifacts = {name: str(folder / name) for name in expected["tokens"]}
    command = [python, "-c", ANSWER, json.dumps([expected["prompt"], artifacts])]
    done = subprocess.run(command, check=True, env=environment, cwd=WORK, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    wrong = {name: tokens for name, tokens in found["tokens"].items() if tokens != expected["tokens"][name]}
    if wrong:
        sys.exit(f"error: the emulated answers differ: {wrong}; expected {expected['tokens']}")
    print(f"{made.name}: the tokens of {', '.join(artifacts)} are right, with kernels for {', '.join(found['isas'])}")


def _version() -> str:
    return next(
        line.partition("=")[2].strip()
        for line in (build_wheels.ROOT / "setup.cfg").read_text(encoding="utf-8").splitlines()
        if line.startswith("version")
    )


if __name__ == "__main__":
    os.chdir(build_wheels.ROOT)
    check(build_wheels.build(MACHINE))
