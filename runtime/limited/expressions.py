"""Regular expressions of strangers: whether they can be matched with some names in a short time.

The config of an adapter or of a quantized checkpoint names modules by regular expressions. One such as `(a+)+$` takes
longer than anybody waits, and nothing interrupts Python's matching in a thread. So a process with limits matches first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..errors import UserError, shown
from .process import LimitedProcess, LimitError, Limits, RefusedError

LIMITS = Limits(seconds=2.0, memory=256 << 20, characters=0)


def check_expressions(expressions: Iterable[str], names: Collection[str], where: str, remedy: str) -> None:
    """Match expressions with names in another process, for the first time. Matching them here takes as long.

    Args:
        expressions: those that `re` compiles.
        names: of modules.
        where: begins the message of an error: the file, and the key.
        remedy: ends it.

    Raises:
        UserError: matching exceeds a limit.
    """
    given = sorted(set(expressions))
    if not given or not names:
        return
    process = LimitedProcess("expressions", LIMITS)
    try:
        process.ask([given, sorted(names)])
    except (LimitError, RefusedError) as error:
        listed = ", ".join(shown(text) for text in given[:3]) + (" ..." if len(given) > 3 else "")
        raise UserError(
            f"{where}: matching {len(given):,} regular expressions ({listed}) with {len(names):,} names of modules: "
            f"{error}. {remedy}"
        ) from error
    finally:
        process.close()
