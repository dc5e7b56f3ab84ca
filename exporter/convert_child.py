"""`python -m exporter.convert_child MODEL OUTPUT CONFIG`: MindSpore Lite's converter, in a process of its own.

So that its log can be kept whole, and a crash of native code ends this process alone. Imports nothing of the project.
"""

from __future__ import annotations

import sys


def main(model: str, output: str, config: str) -> None:
    """Write OUTPUT.mindir: MODEL compiled by CANN for the chip that CONFIG names."""
    import mindspore_lite as lite

    converter = lite.Converter()
    converter.save_type = lite.ModelType.MINDIR
    converter.optimize = "ascend_oriented"
    converter.convert(lite.FmkType.MINDIR, model, output, config_file=config)


if __name__ == "__main__":
    main(*sys.argv[1:])
