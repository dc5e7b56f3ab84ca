"""edgellama convert: has CANN compile the graph of an artifact for one SoC version, with MindSpore Lite's converter.

The result is a separate folder beside the exported one. The exported one can be converted again for another version.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from edgellama import output_file
from edgellama.artifact.manifest import MANIFEST, Artifact, Conversion, FileEntry, Graph, file_entry, write_manifest
from edgellama.backend.ascend import npu_smi
from edgellama.backend.ascend.cann_log import explain
from edgellama.checkout import module_command
from edgellama.errors import UserError
from edgellama.kernels.ascend.chips import CHIPS, Chip
from edgellama.mindir.check import check_graphs

from ..progress import Progress
from ..writing.atomic_folder import Claim, claimed
from ..writing.convert_config import CONFIG, write_config
from .convert_host import Host, check_room, inspect_host

COMPILED = b"CustomAscend"  # the only node of a graph that CANN compiled
TAIL_LINES = 12
KEPT_LINES = 4000  # of the end of the log, in which the cause of a failure is searched


@dataclass(frozen=True)
class ConvertOptions:
    """What the command takes.

    Attributes:
        artifact: the folder that export wrote
        soc: CANN's name of the SoC version to compile for; None takes the one of this host's NPU (choose_soc)
        out: the folder to write; None is the artifact's name and the SoC version
    """

    artifact: Path
    soc: str | None = None
    out: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgellama convert`."""
    parser.description = (
        "Writes a folder beside the artifact. Needs a host with CANN, the operator package of kernels/ascend and "
        "MindSpore Lite for Ascend; no NPU."
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument(
        "--soc", help="SoC version to compile for (default: that of this host's NPU; required without one)"
    )
    parser.add_argument("--out", type=Path, help="folder (default: <artifact>-<chip>)")
    parser.set_defaults(run=run_convert)


def run_convert(arguments: argparse.Namespace) -> None:
    """Run the command `convert`. Raises UserError as `convert` does."""
    progress = Progress()
    out = convert(ConvertOptions(arguments.artifact, arguments.soc, arguments.out), progress)
    progress.console.print(f"wrote {out}; on the board: edgellama generate {out} --prompt ...", highlight=False)


def convert(options: ConvertOptions, progress: Progress) -> Path:
    """Write the converted artifact and return its folder. A failure leaves the log, and no partly written folder.

    Raises UserError: it says what is missing on this host, or what failed, with the operator, CANN's error code and the
    end of the log.
    """
    source = Artifact.open(options.artifact)
    chip = _chip(source)
    check_graphs(source)
    graph = source.manifest.graphs[0]
    config = source.file(graph.file).parent / CONFIG
    if not config.is_file():
        raise UserError(f"{config}: missing. Copy the whole folder again or export again")
    soc, reason = choose_soc(options.soc, chip)
    progress.console.print(f"Converting for {soc}: {reason}", highlight=False)
    out = options.out or source.path.with_name(f"{source.path.name}-{soc.removeprefix('Ascend').lower()}")
    if out.resolve() == source.path.resolve():
        raise UserError(
            f"OUT is {out}, the artifact itself. Choose another folder, so that the artifact can be converted again"
        )
    with claimed(out, source.path) as claim:
        _convert(source, soc, claim, progress)
    return out


def _convert(source: Artifact, soc: str, claim: Claim, progress: Progress) -> None:
    graph = source.manifest.graphs[0]
    host = inspect_host(_chip(source))
    check_room(claim.real, sum(entry.bytes for entry in source.manifest.files()))
    log = claim.out.with_name(f"{claim.out.name}.convert.log")
    output_file.check(log, is_log, "a log of `convert`")
    with claim.written() as partial:
        (partial / "graphs").mkdir()
        ini = partial / CONFIG
        write_config(source.file(graph.file).parent / CONFIG, ini, soc)
        target = partial / "graphs" / Path(graph.file).stem
        run(command(host, source.file(graph.file), target, ini), log, soc, progress)
        compiled = check_output(target.with_suffix(".mindir"), log)
        ini.unlink()
        _copy_rest(source, partial)
        conversion = Conversion(soc, graph.buckets, host.cann_version, host.lite)
        manifest = replace(source.manifest, graphs=(_entry(graph, partial, compiled),), converted=conversion)
        write_manifest(partial, manifest)


def is_log(file: BinaryIO) -> bool:
    """Return whether a file is a log of `run`."""
    return file.read(2) == b"$ "


def _chip(source: Artifact) -> Chip:
    """Return the chip of the artifact's target. Raises UserError if there is nothing to convert."""
    manifest = source.manifest
    chip = CHIPS.get(manifest.target)
    if chip is None:
        raise UserError(
            f"{source.path}: target is {manifest.target!r}, which needs no conversion. Export with TARGET="
            + " or ".join(CHIPS)
        )
    if manifest.converted is not None:
        raise UserError(
            f"{source.path} is converted already, for {manifest.converted.soc}. Convert the folder that export wrote"
        )
    return chip


def choose_soc(asked: str | None, chip: Chip) -> tuple[str, str]:
    """Return the SoC version to convert for, and the reason in words.

    The first of these rules that applies decides:

    - the version that the caller names (SOC)
    - the version of this host's NPUs, if npu-smi lists one version of `chip`
    - the only version of `chip`

    There is no default, because a graph compiled for one version does not run on another. Raises UserError if no rule
    applies, or if the caller names something that is not a version of `chip`.
    """
    if asked is not None:
        if asked not in chip.soc_versions:
            raise UserError(
                f"the chip to convert for is {asked!r} (SOC); this artifact is for {chip.target}. {_remedy(chip)}"
            )
        return asked, "SOC names it"
    here = _socs_here(chip)
    if len(here) == 1:
        return here[0], "npu-smi lists it on this host"
    if len(chip.soc_versions) == 1:
        return chip.soc_versions[0], f"it is the only version of {chip.name}"
    found = f"this host has NPUs of several ({', '.join(here)})" if here else f"this host has no {chip.name}"
    raise UserError(
        f"SOC is needed: {chip.name} has several SoC versions, a converted graph runs on one of them only, and {found}."
        f" {_remedy(chip)}"
    )


def _socs_here(chip: Chip) -> list[str]:
    """Return the SoC versions of this chip that npu-smi lists on this host."""
    try:
        table = npu_smi.read()
    except UserError as error:
        raise UserError(f"{error}. Or name the SoC version yourself. {_remedy(chip)}") from error
    return sorted({npu.soc for npu in table.npus} & set(chip.soc_versions)) if table else []


def _remedy(chip: Chip) -> str:
    """Return how to find and name a version, with the boards that are known to have it."""
    versions = []
    for soc in chip.soc_versions:
        boards = [board.name for board in chip.boards if board.soc == soc]
        versions.append(f"{soc} ({'; '.join(boards)})" if boards else soc)
    return "`npu-smi info` on the board prints the version without Ascend. Set SOC (--soc) to one of: " + ", ".join(
        versions
    )


def command(host: Host, model: Path, output: Path, config: Path) -> list[str]:
    """Return the converter's command line. Both forms of the converter add .mindir to the name of the output."""
    if host.converter == "python":
        child = module_command("edgellama.exporter.ascend.convert_child")
        return [*child, *(str(path.absolute()) for path in (model, output, config))]
    return [
        host.converter,
        "--fmk=MINDIR",
        f"--modelFile={model.absolute()}",
        f"--outputFile={output.absolute()}",
        "--saveType=MINDIR",
        "--optimize=ascend_oriented",
        f"--configFile={config.absolute()}",
    ]


def run(arguments: list[str], log: Path, soc: str, progress: Progress) -> None:
    """Run the converter and write its output into `log` line by line. Raises UserError if it fails."""
    what = f"Converting for {soc} (log: {log})"
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    with progress.running(what) as show, log.open("w", encoding="utf-8") as file:
        file.write(f"$ {' '.join(arguments)}\n")

        def take(line: str) -> None:
            file.write(line)
            file.flush()  # so that a user can follow the log while the converter runs
            kept.append(line)
            show(line)

        status = _stream(arguments, take)
    text = "".join(kept)
    if status != 0 or "CONVERT RESULT FAILED" in text:
        raise UserError(f"converting for {soc} failed{_status(status)}: {_cause(text)}\nThe whole log is {log}")


def _stream(arguments: list[str], take: Callable[[str], None]) -> int:
    """Run a program, call `take` with each line that it prints, and return its exit status."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    )
    try:
        for line in process.stdout or ():
            take(line)
        return process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _status(status: int) -> str:
    if status < 0:  # killed by the system, usually because memory ran out
        return f" (killed by signal {-status})"
    return f" (status {status})" if status else ""


def _cause(text: str) -> str:
    """Return the cause that the log names, if it is a known one, and the end of the log."""
    found = explain(text)
    tail = "\n".join("  " + line for line in text.strip().splitlines()[-TAIL_LINES:]) or "  (it printed nothing)"
    return f"{found or 'the log names no known cause'}\nIt ends:\n{tail}"


def check_output(path: Path, log: Path) -> Path:
    """Return `path`, the converted file. Raises UserError if it does not exist or CANN did not compile it."""
    if not path.is_file():
        raise UserError(f"the converter ended without an error but did not write {path.name}. The whole log is {log}")
    with path.open("rb") as file:
        before = b""
        while piece := file.read(1 << 24):
            if COMPILED in before + piece:
                return path
            before = piece[-len(COMPILED) :]
    raise UserError(
        f"the converter wrote a graph that CANN did not compile (no {COMPILED.decode()} node): this MindSpore Lite has "
        f"no Ascend support. Install the release for Ascend. The whole log is {log}"
    )


def _entry(graph: Graph, folder: Path, compiled: Path) -> Graph:
    """Return the manifest's entry of the converted graph, with the files that the converter wrote beside it.

    Above 2 GB the converter writes the weights to a separate file.
    """
    main = file_entry(folder, str(compiled.relative_to(folder)))
    others = sorted(path for path in compiled.parent.rglob("*") if path.is_file() and path != compiled)
    data: tuple[FileEntry, ...] = tuple(file_entry(folder, str(path.relative_to(folder))) for path in others)
    return replace(graph, file=main.file, sha256=main.sha256, bytes=main.bytes, data=data)


def _copy_rest(source: Artifact, folder: Path) -> None:
    """Copy the files that the manifest does not list as graph or weights, such as the tokenizer's."""
    left_out = {MANIFEST, CONFIG, *(entry.file for entry in source.manifest.files())}
    for path in source.path.iterdir():
        if path.is_file() and path.name not in left_out:
            shutil.copy2(path, folder / path.name)
