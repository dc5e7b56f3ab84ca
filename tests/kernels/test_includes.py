"""The folders of kernels/cpu: each includes only headers of the folders below it."""

import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels/cpu"
BELOW = {
    "base": set(),
    "simd": {"base"},
    "linear": {"base", "simd"},
    "attention": {"base", "simd"},
    "layer": {"base", "simd", "linear", "attention"},
    "sampling": {"base", "simd"},
    "lite": {"base", "simd", "linear", "attention", "layer"},
}
TABLE_OF_KERNELS = KERNELS / "base/variant.cpp"  # names a function of every folder


def test_every_folder_has_its_place() -> None:
    assert {path.parent.name for path in KERNELS.glob("*/*.cpp")} | {"simd"} == set(BELOW)


@pytest.mark.parametrize("folder", BELOW)
def test_a_folder_includes_only_folders_below_it(folder: str) -> None:
    for path in [*(KERNELS / folder).glob("*.h"), *(KERNELS / folder).glob("*.cpp")]:
        if path != TABLE_OF_KERNELS:
            included = set(re.findall(r'#include "([a-z]+)/', path.read_text()))
            assert included <= BELOW[folder] | {folder}, path
