"""python -m exporter COMMAND: checkpoints into artifacts, what is in one, and what a board says to one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from exporter.progress import Progress
from exporter.targets import TARGETS
from runtime.errors import UserError

OURS = ("edgellama", "exporter", "kernels", "runtime")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace, Progress], None] = arguments.run
    try:
        run(arguments, Progress())
    except UserError as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if arguments.debug or package in ("", *OURS):
            raise
        print(
            f"error: the Python package {package} is not installed. Install what the exporter needs, in a checkout: "
            'pip install ".[export]"',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m exporter", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    export = commands.add_parser("export", parents=[common], help="write an artifact")
    export.add_argument("model", help="a preset, a Hugging Face folder, a hub id or a .gguf file")
    export.add_argument("--target", default="cpu", help=f"{', '.join(TARGETS)} (default: %(default)s)")
    export.add_argument("--weights", help="weight format (default: the target's first)")
    export.add_argument("--cache", help="dtype of the KV cache (default: the target's first)")
    export.add_argument("--context", type=int, help="tokens a row's cache holds (default: 2048, or the model's most)")
    export.add_argument("--buckets", type=_numbers, help="prefill lengths, as 32,128,512 (the default)")
    export.add_argument("--batch", type=int, default=1, help="rows (default: %(default)s)")
    export.add_argument("--out", type=Path, help="folder (default: artifacts/<model>-<target>-<weights>)")
    export.add_argument("--synthetic", action="store_true", help="random weights; MODEL gives the config only")
    export.add_argument("--seed", type=int, help="of the random weights (default: 0)")
    export.add_argument("--no-verify", dest="verify", action="store_false", help="skip the comparison at the end")
    export.set_defaults(run=_export)

    convert = commands.add_parser(
        "convert",
        parents=[common],
        help="have CANN compile an artifact of an Ascend target",
        description="Needs a host with CANN, our operator package and MindSpore Lite for Ascend; no NPU. Writes a "
        "folder beside the artifact.",
    )
    convert.add_argument("artifact", type=Path)
    convert.add_argument("--soc", help="SoC version to compile for (default: the one of this host's NPU)")
    convert.add_argument("--out", type=Path, help="folder (default: <artifact>-<chip>)")
    convert.set_defaults(run=_convert)

    board = commands.add_parser(
        "board-check",
        parents=[common],
        help="the first thing to run on a board: versions, and a tiny model through everything",
    )
    board.add_argument("--device-id", type=int, default=0, metavar="N", help="NPU (default: %(default)s)")
    board.add_argument("--probe", type=Path, metavar="DIR", help="what board-probe made (default: make it here)")
    board.add_argument("--json", type=Path, default=Path("build/board-check.json"), help="default: %(default)s")
    board.set_defaults(run=_board_check)

    board_probe = commands.add_parser("board-probe", parents=[common], help="make the tiny model of board-check")
    board_probe.add_argument("--target", required=True, help="ascend310p, ascend310b or ascend910b")
    board_probe.add_argument("--out", type=Path, help="folder (default: build/board-probe-<target>)")
    board_probe.set_defaults(run=_board_probe)

    plan = commands.add_parser(
        "plan",
        parents=[common],
        help="what a model needs and how fast it can be, before an export",
        description="Memory, bytes and operations a token, the roofline's times on each board and what fits it. "
        "`pydoc exporter.plan` describes the JSON.",
    )
    plan.add_argument(
        "model", help="as for export; a preset or a folder's config.json is enough, nothing is downloaded"
    )
    plan.add_argument("--target", help="what it shall run on (default: cpu)")
    plan.add_argument("--weights", help="weight format (default: the target's first)")
    plan.add_argument("--cache", help="dtype of the KV cache (default: the target's first)")
    plan.add_argument("--context", type=int, help="tokens a row's cache holds (default: 2048, or the model's most)")
    plan.add_argument("--batch", type=int, help="rows (default: 1)")
    plan.add_argument("--buckets", type=_numbers, help="prefill lengths, as 32,128,512 (the default)")
    plan.add_argument(
        "--measured", type=Path, metavar="FILE", help="hold it against what `python -m runtime bench --json` wrote"
    )
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    plan.set_defaults(run=_plan)

    inspect = commands.add_parser("inspect", parents=[common], help="show what is in an artifact")
    inspect.add_argument("artifact", type=Path)
    inspect.add_argument("--onnx", type=Path, metavar="DIR", help="write each graph as ONNX, for Netron")
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", parents=[common], help="check an artifact's files and its logits")
    verify.add_argument("artifact", type=Path)
    verify.add_argument("--checkpoint", help="what it was exported from (default: as the manifest says)")
    verify.set_defaults(run=_verify)

    evaluate = commands.add_parser("evaluate", parents=[common], help="perplexity and KL divergence on a text")
    evaluate.add_argument("artifact", type=Path)
    evaluate.add_argument("--text", type=Path, help="UTF-8 text (default: two chapters of Alice in Wonderland)")
    evaluate.add_argument("--tokens", type=int, default=4096, help="how many of it (default: %(default)s)")
    evaluate.add_argument("--checkpoint", help="what it was exported from (default: as the manifest says)")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.set_defaults(run=_evaluate)
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 32,128,512") from error


def _export(arguments: argparse.Namespace, progress: Progress) -> None:
    from exporter.export import Options, export

    names = (
        *("model", "target", "weights", "cache", "context", "buckets", "batch", "out", "verify"),
        *("synthetic", "seed"),
    )
    out = export(Options(**{name: getattr(arguments, name) for name in names}), progress)
    progress.console.print(f"wrote {out}", highlight=False)


def _convert(arguments: argparse.Namespace, progress: Progress) -> None:
    from exporter.convert import ConvertOptions, convert

    out = convert(ConvertOptions(arguments.artifact, arguments.soc, arguments.out), progress)
    progress.console.print(f"wrote {out}; on the board: python -m runtime generate {out} --prompt ...", highlight=False)


def _board_check(arguments: argparse.Namespace, progress: Progress) -> None:
    from exporter.board.check import check

    check(arguments.device_id, arguments.probe, arguments.json, progress)


def _board_probe(arguments: argparse.Namespace, progress: Progress) -> None:
    from exporter.board.probe import make

    out = arguments.out or Path(f"build/board-probe-{arguments.target}")
    out.parent.mkdir(parents=True, exist_ok=True)
    progress.console.print(f"wrote {make(arguments.target, out, progress)}; copy it to the board", highlight=False)


def _plan(arguments: argparse.Namespace, progress: Progress) -> None:
    from exporter.plan.command import Options, run

    names = ("model", "target", "weights", "cache", "context", "batch", "buckets", "measured")
    run(Options(**{name: getattr(arguments, name) for name in names}), arguments.json)


def _inspect(arguments: argparse.Namespace, progress: Progress) -> None:
    from exporter.inspect import inspect

    inspect(arguments.artifact, arguments.onnx, progress)


def _verify(arguments: argparse.Namespace, progress: Progress) -> None:
    from exporter.checkpoint.open import opened_for
    from exporter.verify import prove
    from runtime.artifact.manifest import Artifact

    with progress.stage("Hashing every file"):
        artifact = Artifact.open(arguments.artifact, check_data=True)
    checkpoint = opened_for(artifact.manifest, arguments.checkpoint)
    if checkpoint.config.to_dict() != artifact.manifest.config:
        raise UserError(f"{checkpoint.path} is another model than {arguments.artifact} was exported from")
    prove(artifact.path, artifact.manifest, checkpoint, progress)


def _evaluate(arguments: argparse.Namespace, progress: Progress) -> None:
    from exporter import evaluate

    text = arguments.text or evaluate.TEXT
    evaluate.main(arguments.artifact, arguments.checkpoint, text, arguments.tokens, arguments.json, progress)


if __name__ == "__main__":
    sys.exit(main())
