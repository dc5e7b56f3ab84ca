"""The one exception that is the user's to mend, shared by the exporter and the runtime."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: the message says what was found, the limit, and the remedy.

    The command lines print it as one line and exit with status 2; `--debug` shows the traceback.
    """
