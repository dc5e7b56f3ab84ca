"""python tests/mutants: changes modules in small ways, and reports which changes no test notices.

Each mutant is one change, such as < instead of <=, made in a copy of the checkout. The module's quick tests (parts.py)
then run there. A mutant is killed if they fail or hang. README.md explains the survivors.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutants.mutations import Mutant, Place, make, places
from mutants.parts import PARTS, Module
from mutants.run import Tree

NEEDED = 0.9  # share of mutants that the tests of each part must kill


@dataclass
class Result:
    """The counts of one module."""

    path: str
    mutants: int = 0
    killed: int = 0
    hung: int = 0
    survivors: list[Mutant] = field(default_factory=list)


def parse_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python tests/mutants", description=__doc__)
    parser.add_argument(
        "--part", type=part_names, default=list(PARTS), help=f"some of {','.join(PARTS)} (default: all)"
    )
    parser.add_argument("--module", default="", help="only modules whose path contains this text")
    parser.add_argument("--sample", type=int, default=40, help="mutants per module, at random (default: %(default)s)")
    parser.add_argument("--all", action=argparse.BooleanOptionalAction, default=False, help="every mutant")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    return parser.parse_args()


def part_names(text: str) -> list[str]:
    """Return the parts of a list that commas separate."""
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    return names


def main() -> int:
    """Run the mutants, print the table and the survivors; 1 if a part is below NEEDED, 2 if the tests fail anyway."""
    options = parse_options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the copy is deleted
    began = time.monotonic()
    shares = []
    with tempfile.TemporaryDirectory(prefix="edgellama-mutants-") as scratch:
        tree = Tree(Path(scratch) / "checkout")
        results: dict[str, list[Result]] = {}
        for part in options.part:
            for module in PARTS[part]:
                if options.module in module.path:
                    limit = sys.maxsize if options.all else options.sample
                    results.setdefault(part, []).append(run_module(tree, module, limit, options.seed))
    for part, found in results.items():
        mutants, killed = sum(x.mutants for x in found), sum(x.killed for x in found)
        shares.append(killed / max(mutants, 1))
        print(f"\n{part:46} {'mutants':>8} {'killed':>8} {'hung':>6} {'survived':>9} {'share':>7}")
        for x in found:
            print(line(x.path, x.mutants, x.killed, x.hung))
        print(line("together", mutants, killed, sum(x.hung for x in found)))
    for found in results.values():
        for mutant in (mutant for x in found for mutant in x.survivors):
            print(f"\n{mutant.diff()}")
    sample = "all mutants" if options.all else f"at most {options.sample} mutants per module, seed {options.seed}"
    print(f"\n{sample}; {(time.monotonic() - began) / 60:.1f} minutes")
    return int(min(shares, default=0) < NEEDED)


def line(name: str, mutants: int, killed: int, hung: int) -> str:
    """Return a line of the table. The hung ones are among the killed."""
    return f"  {name:44} {mutants:8} {killed:8} {hung:6} {mutants - killed:9} {killed / max(mutants, 1):7.1%}"


def run_module(tree: Tree, module: Module, most: int, seed: int) -> Result:
    """Run at most `most` mutants of a module. Raises SystemExit if its tests fail without a mutant."""
    source = tree.read(module.path)
    seconds = tree.prepare(module.tests)
    result = Result(module.path)
    for mutant in sampled(module.path, source, most, seed):
        tree.write(module.path, mutant.changed)
        state, _ = tree.run(module.tests, 15 + 4 * seconds)
        result.mutants += 1
        result.killed += state != "passed"
        result.hung += state == "hung"
        if state == "passed":
            result.survivors.append(mutant)
            print(f"survived: {mutant.diff()}", file=sys.stderr, flush=True)
    tree.write(module.path, source)
    left = result.mutants - result.killed
    print(f"{module.path}: {result.mutants} mutants, {left} survived", file=sys.stderr, flush=True)
    return result


def sampled(path: str, source: str, most: int, seed: int) -> list[Mutant]:
    """Return at most `most` different mutants of a module, drawn with this seed, without the equivalent ones."""
    drawn: list[Place] = places(source)
    random.Random(f"{seed} {path}").shuffle(drawn)
    found: dict[str, Mutant] = {}
    for place in drawn:
        if len(found) >= most:
            break
        mutant = make(path, source, place)
        if mutant is not None and mutant.reason() is None:
            found.setdefault(mutant.changed, mutant)
    return list(found.values())


if __name__ == "__main__":
    sys.exit(main())
