"""python tests/torture [--quick] [--only CLASS ...]: injects faults into the product and prints what happens.

Each fault class runs in a process of its own; as many run at once as there are processors. The exit status is 1 if a
case ended with an unclear error, a traceback, a crash, a hang or a wrong result without an error. The files of such a
case are kept, and `--only CLASS --seed N --case NUMBER` repeats it. README.md describes the classes and the rules.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from torture.case import FaultClass, outcomes  # noqa: E402
from torture.report import Counted, print_bad, print_list, print_table, write_json  # noqa: E402
from torture.workers import run_all  # noqa: E402

SEED = 11  # of CI, and without --seed
# Each module has a tuple CLASSES. It imports what takes long inside the functions that run cases.
MODULES = (
    "manifests",
    "versions",
    "weight_headers",
    "checkpoints",
    "derived_weights",
    "artifacts",
    "folders",
    "read_only",
    "sessions",
    "http_cases",
    "abandoned",
    "soak",
    "templates",
    "grammars",
)


def main() -> int:
    """Run the command line and return the exit status."""
    options = parse_options()
    classes = {fault.name: fault for module in MODULES for fault in import_module(f"torture.{module}").CLASSES}
    if unknown := sorted(set(options.only) - set(classes)):
        sys.exit(f"error: no class {unknown[0]!r}; there are {', '.join(classes)}")
    chosen = [fault for name, fault in classes.items() if not options.only or name in options.only]
    if options.list:
        print_list(chosen)
        return 0
    if options.worker is not None:
        serve(classes[options.worker], options)
        return 0
    work = options.work or Path(tempfile.mkdtemp(prefix="edgellama-torture-"))
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).parent), "--seed", str(options.seed), "--work", str(work)]
    numbers = {fault.name: numbers_of(fault, options) for fault in chosen}
    print(f"seed {options.seed}, files in {work}", file=sys.stderr)
    counted: dict[str, Counted] = run_all(command, numbers, options.jobs)
    print_table(counted)
    print_bad(counted, options.seed, work)
    if options.json is not None:
        write_json(options.json, counted, options.seed, "quick" if options.quick else "full")
    good = all(not result.bad for result in counted.values())
    if good and options.work is None:
        shutil.rmtree(work, ignore_errors=True)
    return 0 if good else 1


def parse_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python tests/torture", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the form of CI: fewer cases of each class")
    parser.add_argument("--only", nargs="+", default=[], metavar="CLASS", help="these classes")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    parser.add_argument("--list", action="store_true", help="list the classes, their counts and rules, and stop")
    parser.add_argument("--case", type=int, help="this case alone, of the class of --only")
    parser.add_argument("--count", type=int, help="so many cases of each class, instead of those of the form")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="classes at once (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="the folder for files; default: a temporary one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts and the bad cases to FILE")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # with these three, this process runs one class
    parser.add_argument("--numbers", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.only = " ".join(options.only).replace(",", " ").split()  # make gives one word
    return options


def numbers_of(fault: FaultClass, options: argparse.Namespace) -> range:
    """The numbers of the cases to run of a class."""
    if options.case is not None:
        return range(options.case, options.case + 1)
    return range(options.count if options.count is not None else fault.quick if options.quick else fault.full)


def serve(fault: FaultClass, options: argparse.Namespace) -> None:
    """Run one class, and write each outcome as a line of JSON to the descriptor --output."""
    work = options.work / fault.name
    with os.fdopen(options.output, "w") as output:
        for number, outcome in outcomes(fault, options.seed, range(*options.numbers), work):
            output.write(json.dumps([number, outcome.kind, outcome.detail]) + "\n")
            output.flush()


if __name__ == "__main__":
    sys.exit(main())
