"""`python -m edgellama.exporter.ascend.convert_child MODEL OUTPUT CONFIG`: MindSpore Lite's converter, run apart.

A separate process makes it possible to keep the converter's whole log, and a crash of native code ends that process
only. This module imports nothing of the project.
"""

from __future__ import annotations

import sys


def main(model: str, output: str, config: str) -> None:
    """Have CANN compile `model` for the SoC version that `config` names, and write `output`.mindir."""
    import mindspore_lite as lite

    converter = lite.Converter()
    converter.save_type = lite.ModelType.MINDIR
    converter.optimize = "ascend_oriented"
    converter.convert(lite.FmkType.MINDIR, model, output, config_file=config)


if __name__ == "__main__":
    main(*sys.argv[1:])
