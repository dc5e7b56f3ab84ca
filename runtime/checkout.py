"""Lets a checkout be used by its folders' names: `python -m exporter`, `python -m runtime`, `from runtime import ...`.

The one package is `edgellama` (runtime/), with `edgellama.exporter` (exporter/) and `edgellama.kernels` (kernels/).
Nothing is loaded twice: a module that is imported by a folder's name is the module of the package, so
`runtime.LlamaForCausalLM is edgellama.LlamaForCausalLM`. The `__init__.py` of each of the three folders executes this
file when it is imported by the folder's name. An installed package does not have the folders' names.
"""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"runtime": "edgellama", "exporter": "edgellama.exporter", "kernels": "edgellama.kernels"}


class CheckoutFinder(MetaPathFinder):
    """Finds `runtime.x` as `edgellama.x`; finds edgellama's folders in the checkout, which takes precedence over an
    installed package unless that is imported already."""

    def __init__(self) -> None:
        folders = {package: ROOT / folder for folder, package in PACKAGES.items()}
        self.folders = {} if "edgellama" in sys.modules else folders

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname in self.folders:
            return importlib.util.spec_from_file_location(fullname, self.folders[fullname] / "__init__.py")
        folder, _, rest = fullname.partition(".")
        if folder not in PACKAGES or not rest:
            return None
        module = f"{PACKAGES[folder]}.{rest}"
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return None
        locations = spec.submodule_search_locations
        loader = _SecondName(module, spec.origin)
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=loader, submodule_search_locations=locations
        )


class _SecondName(SourceFileLoader):
    """Registers a module of the package under a second name; `python -m` executes its code."""

    def __init__(self, module: str, path: str) -> None:
        super().__init__(module, path)
        self.module = module

    def get_code(self, fullname: str) -> CodeType | None:
        return super().get_code(self.module)

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self.module)


def use_folder_name(folder: str) -> None:
    """Make a folder's name ("runtime", "exporter" or "kernels") the second name of its package."""
    if not any(type(finder).__name__ == CheckoutFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, CheckoutFinder())
    sys.modules[folder] = importlib.import_module(PACKAGES[folder])


def module_command(module: str) -> list[str]:
    """Return the command line that runs a module of the package, as `python -m` does, with this Python.

    If this process uses the checkout by a folder's name, the child does too: edgellama need not be installed.
    """
    by_folder = any(type(finder).__name__ == CheckoutFinder.__name__ for finder in sys.meta_path)
    return [sys.executable, str(ROOT / "runtime/checkout.py"), module] if by_folder else [sys.executable, "-m", module]


if __name__ == "__main__":  # checkout.py MODULE ARGUMENTS: see module_command
    sys.path[0] = str(ROOT)  # was the folder of this file, whose modules have the names of others
    del sys.argv[0]
    use_folder_name("runtime")
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
