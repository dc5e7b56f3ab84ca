"""Takes from a process of root what lets it ignore the permissions of files, so that read-only means read-only."""

from __future__ import annotations

import ctypes
import os

OVERRIDES = (1, 2, 3)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, of linux/capability.h
PR_CAPBSET_DROP = 24
VERSION_3 = 0x20080522  # of capget and capset: two blocks of (effective, permitted, inheritable), 32 bits each


def obey_permissions() -> None:
    """Let the permissions of files bind this process and its children, also those of root. It cannot be undone.

    Files and folders of root then behave as those of any user behave for that user.

    Raises:
        OSError: the system refuses it.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments):
            raise OSError(ctypes.get_errno(), f"{name}: the capabilities of this process cannot be changed")

    for number in OVERRIDES:
        call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)  # or a program that is started would get them again
    head, blocks = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)()
    call("capget", head, blocks)
    for i in range(3):  # the first block has the numbers below 32
        blocks[i] &= ~sum(1 << number for number in OVERRIDES)
    call("capset", head, blocks)
