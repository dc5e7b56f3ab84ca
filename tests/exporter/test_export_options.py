"""The options of an export are declared once: the command lines, the Makefile and README use the declarations."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from edgellama.__main__ import main
from edgellama.errors import UserError
from edgellama.exporter.export_options import ExportOptions, declaration, shown_default

ROOT = Path(__file__).parents[2]
OPTIONS = [option for option in fields(ExportOptions) if option.name != "model"]


def make(*words: str) -> list[str]:
    """The lines that make would run."""
    command = ["make", "--dry-run", "--no-print-directory", "--assume-old=.venv/ready", f"PYTHON={sys.executable}"]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_the_makefile_forwards_every_option() -> None:
    lists = dict(re.findall(r"(?m)^(\w+) := ([A-Z $()_]+)", (ROOT / "Makefile").read_text()))
    planned = lists["PLAN_OPTIONS"].split()
    exported = planned + lists["EXPORT_OPTIONS"].removeprefix("$(PLAN_OPTIONS)").split()
    assert planned == [option.name.upper() for option in OPTIONS if declaration(option).planned]
    assert exported == [option.name.upper() for option in OPTIONS]
    switches = [option.name.upper() for option in OPTIONS if isinstance(option.default, bool)]
    assert [name for name in lists["SWITCHES"].split() if name in exported] == switches


def test_a_variable_becomes_an_option_if_it_is_set() -> None:
    python = f"{sys.executable} -m edgellama"
    (line,) = make("export", "MODEL=m", "BUCKETS=8,16", "SYNTHETIC=1", "VERIFY=0", "OUT=a b", "CACHE=")
    assert line == f'{python} export "$MODEL" --buckets "$BUCKETS" --out "$OUT" --no-verify --synthetic'
    (line,) = make("plan", "MODEL=m", "TARGET=portable", "OUT=x", "MEASURED=bench.json")
    assert line == f'{python} plan "$MODEL" --target "$TARGET" --measured "$MEASURED"'


def test_the_readme_has_every_option() -> None:
    """The page has the exact help and default; it may add backticks."""
    text = (ROOT / "README.md").read_text().replace("`", "")
    table = text.partition("| option | default | meaning |\n| --- | --- | --- |\n")[2].partition("\n\n")[0]
    expected = [
        f"| {option.name.upper()} | {shown_default(option)} | {declaration(option).help} |" for option in OPTIONS
    ]
    assert table.splitlines() == expected, "\n".join(expected)


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ({"model": "LLAMA3-8B"}, "artifacts/llama3-8b-cpu-int8"),
        ({"model": "someone/Their Model", "target": "portable"}, "artifacts/their-model-portable-fp32"),
        (
            {"model": "llama3-8b", "target": "ascend310p", "synthetic": True},
            "artifacts/llama3-8b-synthetic-ascend310p-fp16",
        ),
        ({"model": "llama3-8b", "out": Path("x")}, "x"),
    ],
)
def test_the_default_folder(options: dict, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ExportOptions(**options).folder() == Path(folder)
    words = [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if name != "model"
    ]
    assert main(["artifact-folder", options["model"], *words]) == 0
    assert capsys.readouterr().out == f"{folder}\n"


def test_a_seed_needs_random_weights() -> None:
    with pytest.raises(UserError, match=r"SEED is 1, .* Give SYNTHETIC=1 too"):
        ExportOptions("llama3-8b", seed=1)
