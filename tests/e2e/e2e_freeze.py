"""Runs inside a device: freezes threads of a process, as a deadlock would, until it is killed.

    python3 - PID first|workers        `first`: the first thread after the main one; `workers`: all

A debugger's means: ptrace stops single threads, which no signal can. What it stops goes on when
this program ends.
"""

import ctypes
import os
import sys
import time

SEIZE, INTERRUPT = 0x4206, 0x4207


def ptrace(request: int, thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    null = ctypes.c_void_p()
    if libc.ptrace(request, thread, null, null) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} {thread}")


def main() -> None:
    pid, which = int(sys.argv[1]), sys.argv[2]
    threads = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid)
    for thread in threads[:1] if which == "first" else threads:
        try:
            ptrace(SEIZE, thread)
            ptrace(INTERRUPT, thread)
        except ProcessLookupError:  # it has ended meanwhile
            continue
    print("frozen", flush=True)
    while os.path.exists(f"/proc/{pid}/task"):
        # A dead thread is not gone before its tracer has seen it.
        try:
            os.waitpid(-1, 0x40000000 | os.WNOHANG)  # __WALL
        except ChildProcessError:
            pass
        time.sleep(0.02)


main()
