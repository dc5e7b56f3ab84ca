"""The configuration file of MindSpore Lite's converter: export writes it beside the graph, conversion adds the SoC."""

from __future__ import annotations

import configparser
from collections.abc import Sequence
from pathlib import Path

from edgellama.artifact.manifest import TensorSpec
from edgellama.errors import UserError
from edgellama.kernels.ascend.chips import Chip

CONFIG = "convert.ini"  # in the folder of the graph
SECTION, SOC_VERSION = "acl_init_options", "ge.socVersion"


def conversion_config(chip: Chip, inputs: Sequence[TensorSpec], buckets: Sequence[int]) -> str:
    """The text of the file for a graph with these inputs, in order; -1 is the token axis.

    It names no SoC version: the conversion chooses one. Each bucket is one gear: the converter compiles every gear, and
    Model.resize switches between them. The token axis is declared as the batch: ge.dynamicDims would fit its meaning,
    but MindSpore Lite accepts that only if the ranks of all inputs add up to at most 128 (converter.cc,
    dyn_shape_process.cc), and the caches of 16 layers have more. enforce_origin keeps float32 where the graph has it;
    the converter's default turns all of it into float16.
    """
    several = len(buckets) > 1  # CANN takes 2 gears or more; one is a static shape
    shapes = ";".join(
        f"{x.name}:{','.join(str(n if several or n > 0 else buckets[0]) for n in x.shape)}" for x in inputs
    )
    gears = ",".join(map(str, buckets))
    return (
        f"# For {chip.name}. The conversion adds the SoC version of the board ([{SECTION}] {SOC_VERSION}).\n"
        "[ascend_context]\n"
        "precision_mode=enforce_origin\n"
        "\n"
        "[acl_build_options]\n"
        'input_format="ND"\n'
        f'input_shape="{shapes}"\n'
    ) + (f'ge.dynamicBatchSize="{gears}"\n' if several else "")


def read_config(path: Path) -> configparser.ConfigParser:
    """Read the file: keys keep their case, and only "=" ends a key, because values contain colons.

    Raises UserError if it cannot be parsed.
    """
    config = configparser.ConfigParser(delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    config.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        config.read_string(path.read_text(encoding="utf-8"))
    except configparser.Error as error:
        raise UserError(f"{path}: {error}. Copy the whole folder again or export again") from error
    return config


def write_config(source: Path, target: Path, soc: str) -> None:
    """Write the export's configuration with the SoC version to convert for."""
    config = read_config(source)
    if not config.has_section(SECTION):
        config.add_section(SECTION)
    config.set(SECTION, SOC_VERSION, soc)
    with target.open("w", encoding="utf-8") as file:
        config.write(file, space_around_delimiters=False)
