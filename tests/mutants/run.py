"""Runs tests on a mutant: in a copy of the checkout, each time in a forked process with a limit of time."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mutants.parts import LEFT_OUT, ROOT

FOLDERS = {"runtime": "edgellama", "exporter": "edgellama/exporter", "kernels": "edgellama/kernels"}
# Those of them that the tests load are imported once, before the mutants: that takes longer than most tests.
PRELOADED = (
    "numpy",
    "hypothesis",
    "tokenizers",
    "safetensors.numpy",
    "gguf.quants",
    "torch",
    "transformers",
    "pydantic",
)
MEMORY = 6 << 30  # bytes that the tests of a mutant may allocate


class Tree:
    """A copy of the checkout in the layout of the installed package, with one mutant at a time in it.

    Attributes:
        folder: the copy.
        output: what the latest run printed.
    """

    def __init__(self, folder: Path) -> None:
        """Copy the checkout to a folder, which must not exist."""
        self.folder = folder
        for name, place in FOLDERS.items():
            shutil.copytree(ROOT / name, folder / place, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__", "peers"))
        shutil.copy(ROOT / "setup.cfg", folder)
        self.output = folder / "output.txt"
        self._loaded = folder / "loaded.txt"

    def read(self, path: str) -> str:
        """Return the text of a module."""
        return self._place(path).read_text(encoding="utf-8")

    def write(self, path: str, text: str) -> None:
        """Replace the text of a module, and forget its compiled form."""
        place = self._place(path)
        place.write_text(text, encoding="utf-8")
        for compiled in place.parent.glob(f"__pycache__/{place.stem}.*"):
            compiled.unlink()

    def prepare(self, tests: Sequence[str]) -> float:
        """Run test files without a mutant, so that later runs find compiled modules and loaded libraries.

        Returns the seconds that the second run takes. Ends the program if a test fails.
        """
        self.run(tests, 600, keep_bytecode=True)
        for name in self._loaded.read_text().split():
            importlib.import_module(name)
        state, seconds = self.run(tests, 600)
        if state != "passed":
            print(f"error: {', '.join(tests)} fail without a mutant:\n{self.output.read_text()}", file=sys.stderr)
            raise SystemExit(2)
        return seconds

    def run(self, tests: Sequence[str], limit: float, keep_bytecode: bool = False) -> tuple[str, float]:
        """Run test files on what the copy has now.

        Args:
            tests: from `tests/`, in this order until one fails.
            limit: seconds.
            keep_bytecode: store compiled modules for later runs; not while the copy has a mutant.

        Returns:
            "passed", "failed" or "hung", and the seconds that it took.
        """
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            self._test(tests, keep_bytecode)
        status = None
        try:
            while status is None and time.monotonic() - began < limit:
                done, code = os.waitpid(child, os.WNOHANG)
                status = code if done else time.sleep(0.02)
        finally:  # ends what the tests have started, and on a hang or Ctrl-C the child itself
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            if status is None:
                os.waitpid(child, 0)
        seconds = time.monotonic() - began
        return "hung" if status is None else "passed" if status == 0 else "failed", seconds

    def _place(self, path: str) -> Path:
        top, _, rest = path.partition("/")
        return self.folder / FOLDERS[top] / rest

    def _test(self, tests: Sequence[str], keep_bytecode: bool) -> None:
        """Run pytest in this process, and end it."""
        os.setsid()
        out = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(out, stream)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        os.chdir(self.folder)
        sys.dont_write_bytecode = not keep_bytecode
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        os.environ |= {"PYTHONPATH": str(self.folder), "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        # A checkout that is installed in editable mode has finders of its own.
        sys.meta_path[:] = [x for x in sys.meta_path if "CheckoutFinder" not in repr(x) and "editable" not in repr(x)]
        for name in [x for x in sys.modules if x.split(".")[0] in ("edgellama", *FOLDERS)]:
            del sys.modules[name]
        sys.path.insert(0, str(self.folder))
        import pytest

        skipped = " or ".join(LEFT_OUT)
        options = [
            "-x",
            "-m",
            "not slow",
            "-k",
            f"not ({skipped})",
            "-p",
            "no:cacheprovider",
            "--hypothesis-seed=0",
            "--noconftest",
        ]
        options += [f"--basetemp={self.folder / 'temporary'}", "--tb=line"]
        code = 1
        try:
            code = int(pytest.main([*options, *(f"tests/{name}" for name in tests)]))
        finally:
            sys.stdout.flush()
            self._loaded.write_text("\n".join(name for name in PRELOADED if name in sys.modules))
            os._exit(code)
