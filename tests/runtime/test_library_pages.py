"""Releasing library pages after loading: which mappings are released, and that everything still runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellama.backend import library_pages
from support.child import run_python


def mapping(range_: str, mode: str, path: str, anonymous: int = 0, inode: int = 7) -> str:
    return f"{range_} {mode} 00000000 fe:00 {inode}  {path}\nSize: 64 kB\nRss: 12 kB\nAnonymous: {anonymous} kB\n"


def test_only_unmodified_read_only_library_pages_qualify() -> None:
    library = "/x/mindspore_lite/lib/libcore.so.4"
    smaps = "".join(
        [
            mapping("1000-2000", "r--p", library),
            mapping("2000-4000", "r-xp", library),
            # RELRO: the loader relocated the pages, then protected them
            mapping("4000-5000", "r--p", library, anonymous=4),
            mapping("5000-6000", "rw-p", library),
            mapping("6000-7000", "r--s", library),
            mapping("7000-8000", "r-xp", "/usr/lib/libc.so.6"),
            mapping("8000-9000", "r--p", "/x/mindspore_lite/weights.bin"),
            "9000-a000 r-xp 00000000 00:00 0\nSize: 4 kB\nRss: 4 kB\nAnonymous: 0 kB\n",
        ]
    )
    assert library_pages.unmodified_mappings(smaps, "/mindspore_lite/") == [
        (0x1000, 0x2000, 12288),
        (0x2000, 0x4000, 12288),
    ]


def test_nothing_happens_where_there_is_no_smaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_pages, "SMAPS", tmp_path / "smaps")
    assert library_pages.release_library_pages() == 0


PROGRAM = """
import json, sys
import numpy as np
from edgellama.engine import engine
from edgellama.backend import library_pages
from edgellama.artifact.manifest import Artifact

release = library_pages.release_library_pages
released = []
engine.release_library_pages = lambda: released.append(0)  # at first without

def logits(made):
    return made.forward(np.arange(12).reshape(2, 6), np.zeros(2), np.full(2, 6)).tolist()

def mapped():
    smaps = library_pages.SMAPS.read_text()
    return sum(size for _, _, size in library_pages.unmodified_mappings(smaps, "/mindspore_lite/"))

before = logits(engine.Engine(Artifact.open(sys.argv[1]), 2))
held = mapped()
engine.release_library_pages = lambda: released.append(release())
made = engine.Engine(Artifact.open(sys.argv[1]), 2)
print(json.dumps({"released": released, "held": held, "left": mapped(), "same": logits(made) == before}))
"""


@pytest.mark.skipif(not library_pages.SMAPS.is_file(), reason="needs Linux's smaps")
def test_a_loaded_engine_gives_pages_back_and_computes_the_same(tiny_artifact: Path) -> None:
    found = run_python(PROGRAM, str(tiny_artifact))
    first, second = found["released"]
    assert first == 0 and second > 50e6
    assert found["left"] < found["held"] / 4 and found["same"]
