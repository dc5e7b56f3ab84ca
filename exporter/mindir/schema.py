"""Load MindIR's protobuf classes (`pb`) from the MindSpore package without importing MindSpore.

The package's __init__ loads MindSpore's native libraries, and a process cannot load them together with MindSpore
Lite's. The generated protobuf module needs none of them. If MindSpore is imported too, both use the same classes.
"""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from edgellama.errors import UserError


def _load() -> Any:
    package = find_spec("mindspore")
    if package is None or package.origin is None:
        raise UserError("mindspore is not installed; `pip install edgellama[export]` installs the exporter's packages")
    path = Path(package.origin).parent / "train" / "mind_ir_pb2.py"
    spec = spec_from_file_location("exporter._mind_ir_pb2", path)
    if spec is None or spec.loader is None or not path.exists():
        raise UserError(f"{path} is missing: the installed mindspore is not the release that setup.cfg names")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pb = _load()
