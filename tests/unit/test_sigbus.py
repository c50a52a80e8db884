"""SIGBUS of a file that loses pages while it is read: real ones, in a process of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CUT = """
import faulthandler, mmap, os, sys, threading
from balena_agent.host.sigbus import BusErrors

faulthandler.enable()
errors = BusErrors()
errors.install()
descriptor = os.open(sys.argv[1], os.O_RDWR)

def lost(pages):
    os.ftruncate(descriptor, pages * mmap.PAGESIZE)
    os.pwrite(descriptor, b"x" * pages * mmap.PAGESIZE, 0)
    mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    os.ftruncate(descriptor, 0)
    return mapped

def read():
    mapped = lost(3)
    with errors.reading() as reading:
        assert not reading.struck
        assert mapped[mmap.PAGESIZE : 2 * mmap.PAGESIZE] == bytes(mmap.PAGESIZE)
        assert reading.struck
        reading.struck = False
        assert mapped[mmap.PAGESIZE] == 0 and not reading.struck
        assert mapped[5] == 0 and reading.struck
    mapped.close()
"""

IN_A_THREAD = """
thread = threading.Thread(target=read)
thread.start()
thread.join()
print("alive")
"""

NOT_ALIGNED = """
import ctypes, signal
class Record(ctypes.Structure):
    _fields_ = [("number", ctypes.c_int), ("errno", ctypes.c_int), ("code", ctypes.c_int),
                ("address", ctypes.c_void_p)]
page = mmap.mmap(-1, mmap.PAGESIZE)
page[0] = 7
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
with errors.reading() as reading:
    for code in (1, 2):
        record = Record(signal.SIGBUS, 0, code, address)
        print(errors._put_page(ctypes.addressof(record)), page[0])
"""

ELSEWHERE = """
with errors.reading():
    thread = threading.Thread(target=lambda: lost(1)[0])
    thread.start()
    thread.join()
print("alive")
"""

CLOSED = """
errors.close()
with errors.reading():
    lost(1)[0]
print("alive")
"""


def run(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "file").touch()
    return subprocess.run(
        [sys.executable, "-c", CUT + script, str(tmp_path / "file")], cwd=ROOT, text=True,
        capture_output=True, timeout=60,
    )  # fmt: skip


def test_who_reads_a_file_that_is_cut_off_sees_zeros_and_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, IN_A_THREAD)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_the_main_thread_may_read_too(tmp_path: Path) -> None:
    done = run(tmp_path, "read(); read(); print('alive')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_nothing_takes_the_place_of_a_page_that_is_there(tmp_path: Path) -> None:
    """A program that is struck for another reason would be struck again at once."""
    done = run(tmp_path, NOT_ALIGNED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False 7\nTrue 0\n", "")


def test_a_thread_that_has_not_said_so_ends_the_process_with_a_trace(tmp_path: Path) -> None:
    done = run(tmp_path, ELSEWHERE)
    assert done.returncode == -signal.SIGBUS and not done.stdout
    assert "most recent call first" in done.stderr


def test_after_the_end_it_is_as_before(tmp_path: Path) -> None:
    done = run(tmp_path, CLOSED)
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr
