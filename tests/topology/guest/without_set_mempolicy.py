"""Executes the rest of its command line in a process that may not call set_mempolicy, as a container's seccomp does."""

import ctypes
import os
import struct
import sys

SYS_SET_MEMPOLICY = 238  # x86-64
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, REFUSE_WITH_EPERM = 0x7FFF0000, 0x00050001
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
# Load the number of the system call; for set_mempolicy return EPERM, else allow.
PROGRAM = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (LOAD_WORD, 0, 0, 0),
        (JUMP_IF_EQUAL, 0, 1, SYS_SET_MEMPOLICY),
        (RETURN, 0, 0, REFUSE_WITH_EPERM),
        (RETURN, 0, 0, ALLOW),
    )
)


class Filter(ctypes.Structure):
    _fields_ = [("num_instructions", ctypes.c_ushort), ("program", ctypes.c_char_p)]


libc = ctypes.CDLL(None, use_errno=True)
given = Filter(len(PROGRAM) // 8, PROGRAM)
for call in (
    (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
    (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(given), 0, 0),
):
    if libc.prctl(*call) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"prctl({call[0]})")
os.execvp(sys.argv[1], sys.argv[1:])
