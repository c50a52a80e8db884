"""Threads as the kernel shows them.

Theory: Python keeps the names of its threads to itself, while whoever looks at a busy device does
so with `ps -L` or `top -H`. Python 3.14 tells the kernel by itself; until then this does.
"""

from __future__ import annotations

import contextlib
import threading


def show_name(thread: threading.Thread) -> None:
    """Tell the kernel what a running thread is called; it takes 15 characters."""
    comm = f"/proc/self/task/{thread.native_id}/comm"
    with contextlib.suppress(OSError), open(comm, "w", encoding="utf-8") as file:
        file.write(thread.name[:15])
