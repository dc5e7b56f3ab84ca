"""The exception for problems that the user can solve, shared by the exporter and the runtime."""

from __future__ import annotations


class UserError(Exception):
    """A problem that the user can solve: the message gives the value found, the limit, and the remedy.

    The command line prints the message and exits with status 2; `--debug` shows the traceback.
    """
