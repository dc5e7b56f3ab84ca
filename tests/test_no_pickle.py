"""No pickle: unpickling runs code of the file's author, so nothing of this project reads or writes pickle files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from support.child import REPOSITORY, run_python

FOLDERS = ("runtime", "exporter", "kernels", "requirements")
FILES = sorted([*(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")), REPOSITORY / "setup.py"])
# Modules that unpickle, or load code, by design.
MODULES = {
    "pickle",
    "_pickle",
    "pickletools",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "pandas",
}
# Functions that unpickle unless told otherwise, or at all, by their last name.
LOADERS = {"read_pickle", "to_pickle", "load_pickle", "unpickle"}
NUMPY = {"numpy", "np"}


def findings(source: str) -> list[str]:
    """Returns what in `source` may unpickle: "line: what"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if names[0] in ("numpy", "torch") and {name.name for name in node.names} & {"load", "save"}:
                found.append(f"{node.lineno}: from {names[0]} import load")
        else:
            names = []
        found += [f"{node.lineno}: import {name}" for name in names if MODULES & set(name.split("."))]
        if isinstance(node, ast.Call) and (problem := _call(node)):
            found.append(f"{node.lineno}: {problem}")
    return found


def _call(node: ast.Call) -> str | None:
    """Returns what is wrong with a call: a loader of pickle files, or a numpy load without allow_pickle=False."""
    keywords = {word.arg: word.value for word in node.keywords}
    allowed = keywords.get("allow_pickle")
    if allowed is not None and not (isinstance(allowed, ast.Constant) and allowed.value is False):
        return "allow_pickle is not False"
    function = node.func
    if not isinstance(function, ast.Attribute):
        name = function.id if isinstance(function, ast.Name) else ""
        return f"{name}()" if name in LOADERS or name == "__import__" else None
    owner = ast.unparse(function.value)
    if function.attr in LOADERS or (owner == "torch" and function.attr in ("load", "save")):
        return f"{owner}.{function.attr}()"
    if owner in NUMPY and function.attr == "load" and allowed is None:
        return "numpy load without allow_pickle=False"
    if function.attr == "import_module" and node.args and isinstance(node.args[0], ast.Constant):
        return "import_module of a pickle module" if MODULES & set(str(node.args[0].value).split(".")) else None
    return None


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, _pickle as p",
        "from pickle import loads",
        "def f():\n    from joblib import load",
        "import numpy as np\nnp.load('a')",
        "import numpy\nnumpy.load('a', mmap_mode='r')",
        "np.load('a', allow_pickle=True)",
        "np.load('a', allow_pickle=flag)",
        "np.lib.format.read_array(f, allow_pickle=True)",
        "from numpy import load",
        "torch.load('model.bin')",
        "importlib.import_module('pickle')",
        "__import__('pickle')",
        "frame.to_pickle('a')",
    ],
)
def test_every_form_is_found(source: str) -> None:
    assert findings(source)


@pytest.mark.parametrize(
    "source", ["np.load('a', allow_pickle=False)", "json.load(f)", "'pickle'", "model.load()", "import_module('json')"]
)
def test_other_calls_are_not_found(source: str) -> None:
    assert findings(source) == []


def test_no_source_can_unpickle() -> None:
    found = {str(path.relative_to(REPOSITORY)): findings(path.read_text(encoding="utf-8")) for path in FILES}
    assert len(found) > 150
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_runtime_unpickles_nothing(tmp_path: Path) -> None:
    """Python reports every class that pickle loads as an audit event, also one that a dependency loads."""
    code = (
        "import json, sys\n"
        "events = []\n"
        "sys.addaudithook(lambda event, _: events.append(event) if event == 'pickle.find_class' else None)\n"
        "from edgellama import LlamaForCausalLM\n"
        "model = LlamaForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = model.generate([[1, 2, 3]], max_new_tokens=4)\n"
        "found = len(events)\n"
        "import pickle\n"
        "pickle.loads(pickle.dumps(json.JSONDecoder))\n"  # the hook counts
        "print(json.dumps([len(ids[0]), found, len(events)]))"
    )
    artifact = REPOSITORY / "tests" / "data" / "compatibility" / "0.1.0" / "portable-fp32"
    assert run_python(code, str(artifact)) == [7, 0, 1]
