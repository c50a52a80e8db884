"""Files that lose pages while they are read through a mapping: met, not died of.

Theory: the journal's library reads its files through mappings. journald cuts a file off when it
archives it (systemd 250 to 254), or when it deletes it on a file system that knows no holes; and a
failing disk has pages that nobody can read. Who touches such a page gets SIGBUS, which ends the
process. The library's authors leave that to those who use it. So we do as journald itself: a page
of zeros takes the place of what is gone, and the reader is told (`Reading.struck`). It opens its
files anew, whatever it has made of the zeros.

That holds for threads that say so, `with reading()`, and for nobody else: any other SIGBUS ends the
process with a trace of all its threads, as it always did.

Invariant: what the handler runs is in memory before it is installed; it opens no file and waits for
no lock but Python's own.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import mmap
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)

_SA_SIGINFO, _SA_RESTART = 0x4, 0x10000000
_MAP_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value
_CODE, _ADDRESS = 8, 16 if ctypes.sizeof(ctypes.c_void_p) == 8 else 12
"""Where in the kernel's record it stands why, and which address was touched."""

_NOTHING_THERE = 2
"""BUS_ADRERR. Other reasons, as an address that is not aligned, would come again and again."""

_STDERR = 2
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """struct sigaction of glibc and musl on all machines but MIPS."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Reading:
    """Of one thread. `struck`: a page was gone since the reader last set this to False."""

    def __init__(self) -> None:
        self.struck = False


class BusErrors:
    """What this process does about SIGBUS from `install` to `close`; one at a time."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = (
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
            ctypes.c_long,
        )  # fmt: skip
        self._readers: dict[int, Reading] = {}
        self._before = _Action()
        self._installed: object = None

    def install(self) -> None:
        """From now on. Where that cannot be, a SIGBUS ends the process as it did."""
        if os.uname().machine.startswith("mips"):
            return
        try:
            handler = _Handler(self._handle)
        except (MemoryError, OSError) as error:  # no code may be made at run time
            _log.warning("A journal that is cut off while it is read will end the agent: %s", error)
            return
        wanted = _Action(flags=_SA_SIGINFO | _SA_RESTART)
        wanted.handler = ctypes.cast(handler, ctypes.c_void_p).value
        done = self._libc.sigaction(
            int(signal.SIGBUS), ctypes.byref(wanted), ctypes.byref(self._before)
        )
        self._installed = handler if done == 0 else None

    def close(self) -> None:
        """As it was before."""
        if self._installed:
            self._libc.sigaction(int(signal.SIGBUS), ctypes.byref(self._before), None)
        self._installed = None

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """The calling thread reads files through mappings, until the end of the block."""
        mine = Reading()
        self._readers[threading.get_ident()] = mine
        try:
            yield mine
        finally:
            del self._readers[threading.get_ident()]

    def _handle(self, number: int, record: int, _: int) -> None:
        """In the thread that was struck, between two instructions of it. A second time for one
        page is impossible; what cannot be helped ends the process when the instruction is tried
        again."""
        try:
            mine = self._readers.get(threading.get_ident())
            if mine is not None and self._put_page(record):
                mine.struck = True
                return
            faulthandler.dump_traceback(_STDERR, all_threads=True)
        except BaseException:  # nobody could catch it
            pass
        self._libc.signal(number, None)

    def _put_page(self, record: int) -> bool:
        if ctypes.c_int.from_address(record + _CODE).value != _NOTHING_THERE:
            return False
        address = ctypes.c_void_p.from_address(record + _ADDRESS).value or 0
        page = address - address % mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        put = self._libc.mmap(page, mmap.PAGESIZE, mmap.PROT_READ, flags, -1, 0)
        return bool(put is not None and put != _FAILED)
