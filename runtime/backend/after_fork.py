"""Tells objects that depend on threads when they are in a forked child of their process.

fork() copies the memory of a process and the thread that calls it, but no other thread. MindSpore Lite's worker threads
are missing in the child: a pass of a model waits for them for ever, and so does the destructor of the model.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import NoReturn, Protocol

from ..errors import UserError

REMEDY = (
    "Load the model in the child, after the fork (gunicorn: without --preload), or start processes with the method "
    '"spawn": multiprocessing.get_context("spawn")'
)


class ForkAware(Protocol):
    """An object that takes part in `tell_when_forked`."""

    def forked(self) -> None:
        """Refuse all further use. Called in the child, in its only thread, right after the fork."""


_owners: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def tell_when_forked(owner: ForkAware) -> None:
    """Call owner.forked() in each forked child of this process, as long as the owner exists."""
    _owners.add(owner)


def keep_for_ever(owner: object) -> None:
    """Prevent the destructor of an object, also at the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


class Refusal:
    """Takes the place of a lock in a forked child: to enter it is a UserError."""

    def __init__(self, loaded_in: int) -> None:
        self._loaded_in = loaded_in

    def __enter__(self) -> NoReturn:
        refuse(self._loaded_in)

    def __exit__(self, *error: object) -> None:
        raise AssertionError("nothing can enter this block")


def refuse(loaded_in: int) -> NoReturn:
    """Raise the UserError for the use of a model that another process loaded; loaded_in: its process id."""
    raise UserError(
        f"the model was loaded in process {loaded_in}, and this is process {os.getpid()}, a forked child of it, "
        f"without the threads that compute. {REMEDY}"
    )


def _tell_owners() -> None:
    for owner in list(_owners):
        owner.forked()


os.register_at_fork(after_in_child=_tell_owners)
