"""The mutants that no test can notice: rules for whole kinds, and a list of single ones with the reason.

The rules, which mutations.py applies:
- Type annotations, and the test of `if TYPE_CHECKING`: nothing evaluates them.
- The text of error messages: f-strings in `raise` and in the calls of MESSAGE_FUNCTIONS. The condition that leads to
  the message is mutated; so is everything that chooses between messages.
- `strict` of zip and `frozen` of dataclasses: they guard against mistakes of this project's own code.
- `<`, `<=`, `>` and `>=` in the place of `==` and `!=` with a text or a named constant: nothing orders these.
- -1 as a size of `reshape`: numpy takes every negative number for it.
- `functools.cache`: the result is the same, only later.
"""

from __future__ import annotations

from typing import NamedTuple

MESSAGE_FUNCTIONS = ("_require", "_require_tensor", "UserError", "WrongFileError", "ValueError", "_wrong")


class Equivalent(NamedTuple):
    """A mutant that behaves like the original.

    Attributes:
        path: the module.
        line: a line that the mutant changes, without its indentation.
        changed: a line that the mutant has instead; None for every change of the line.
        reason: why no test can notice it.
    """

    path: str
    line: str
    changed: str | None
    reason: str


EQUIVALENT: tuple[Equivalent, ...] = ()
