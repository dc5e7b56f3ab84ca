"""The pages beside the code name every file, and nothing that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = {"exporter": "exporter/README.md", "runtime": "runtime/README.md"}
PAGES = sorted(page for page in ROOT.rglob("*.md") if not {".venv", ".venv-peers", "build"} & set(page.parts))


def tree_of(page: Path) -> list[str]:
    """The paths that a page's file tree lists: the block that begins with "```tree", two spaces a level."""
    block = re.search(r"^```tree\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert block, f"{page} has no file tree"
    found, folders = [], [""]
    for line in block[1].splitlines():
        level = (len(line) - len(line.lstrip())) // 2
        name, _, phrase = line.strip().partition(" ")
        assert phrase.strip(), f"{page}: {name} has no phrase"
        folders[level + 1 :] = [folders[level] + name] if name.endswith("/") else []
        if not name.endswith("/"):
            found.append(folders[level] + name)
    return found


@pytest.mark.parametrize("folder", TREES)
def test_a_tree_lists_every_file_once(folder: str) -> None:
    listed = tree_of(ROOT / TREES[folder])
    present = [
        str(path.relative_to(ROOT / folder))
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".h", ".cpp") and path.name != "__init__.py" and "build" not in path.parts
    ]
    assert sorted(listed) == sorted(present)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    for path in re.findall(r"`((?:exporter|runtime|kernels|tests)/[\w./-]+\.(?:py|md|cpp|h|sh))`", text):
        assert (ROOT / path).exists(), f"{page.name}: {path}"
