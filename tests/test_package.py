"""The installed package: its names, its version, and a checkout's folder names as second names of the same modules."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
from pathlib import Path

import pytest

import edgellama
from edgellama import checkout
from edgellama.__main__ import COMMANDS
from support.child import REPOSITORY, run_child

CONFIG = configparser.ConfigParser()
CONFIG.read(REPOSITORY / "setup.cfg")


ONCE = """
import sys
files = {}
for name, module in sorted(sys.modules.items()):
    if name.partition(".")[0] in ("runtime", "exporter", "kernels", "edgellama"):
        assert files.setdefault(module.__file__, module) is module, name
"""


def run(code: str) -> str:
    """Returns the text that `code` prints in a child process."""
    return run_child("-c", code).stdout.strip()


def test_the_version_is_that_of_setup_cfg() -> None:
    assert edgellama.__version__ == CONFIG["metadata"]["version"]


def test_a_checkout_maps_the_same_folders_as_the_installation() -> None:
    lines = CONFIG["options"]["package_dir"].strip().splitlines()
    installed = {folder.strip(): package.strip() for package, folder in (line.split("=") for line in lines)}
    assert installed == checkout.PACKAGES


@pytest.mark.parametrize(
    "code",
    [
        "import runtime, edgellama; assert runtime is edgellama",
        "import edgellama, runtime; assert runtime is edgellama",
        "import runtime, edgellama; assert runtime.LlamaForCausalLM is edgellama.LlamaForCausalLM",
        "from runtime.engine.engine import Engine as a; from edgellama.engine.engine import Engine as b; assert a is b",
        "import exporter.plan, edgellama.exporter.plan as b; assert exporter.plan is b",
        "from kernels import reference as a; from edgellama.kernels import reference as b; assert a is b",
    ],
)
def test_nothing_is_loaded_twice(code: str) -> None:
    run(code + ONCE)


def test_the_checkout_works_without_an_installation(tmp_path: Path) -> None:
    """On a board the checkout is used with the Python that has MindSpore Lite."""
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import exporter, edgellama; print(edgellama.__file__)"
    # -S -E leave out site-packages, and with them the editable installation.
    done = run_child("-S", "-E", "-c", code, cwd=tmp_path)
    assert done.stdout.strip() == str(REPOSITORY / "runtime" / "__init__.py")


@pytest.mark.parametrize("module", ["exporter", "runtime", "edgellama"])
def test_the_command_runs_under_each_name(module: str) -> None:
    done = run_child("-m", module, "--help")
    listed = set(re.findall(r"^    ([a-z][a-z-]+)(?: |$)", done.stdout, re.MULTILINE))
    assert listed == {name for name, command in COMMANDS.items() if command.help}
    assert {"export", "plan", "inspect", "verify", "evaluate", "convert", "generate", "chat", "serve"} < listed


def test_an_unknown_module_of_a_folder_is_reported_as_python_does() -> None:
    code = "try:\n import runtime.nothing\nexcept ModuleNotFoundError as error:\n print(error)"
    assert run(code) == "No module named 'runtime.nothing'"


def test_importing_the_package_loads_no_other_package() -> None:
    assert run("import edgellama, sys; print('numpy' in sys.modules)") == "False"


def test_loading_a_model_imports_only_what_every_model_needs(tmp_path: Path) -> None:
    """Chat templates, beams, the server and child processes are imported when they are used first.

    The second load counts: the first one remembers what it has checked.
    """
    artifact = REPOSITORY / "tests/data/compatibility/0.2.0/cpu-int8"
    late = ["asyncio", "difflib", "importlib.resources", "jinja2", "mindspore", "pydantic", "runpy", "safetensors"]
    late += ["subprocess", "torch", "transformers", "edgellama.exporter", "edgellama.checkout"]
    late += [f"edgellama.{name}" for name in ("grammar", "generation.beam_batch", "limited", "lora", "serve", "tools")]
    late += ["edgellama.text.chat_template"]
    assert all(importlib.util.find_spec(name) for name in late if name != "mindspore")
    load = f"edgellama.LlamaForCausalLM.from_pretrained({str(artifact)!r})"
    code = f"import edgellama, sys; model = {load}; print(sorted(set({late!r}) & set(sys.modules)))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):
        last = run_child("-c", code, env=environment).stdout.strip()
    assert last == "[]"
