"""host/journal_reader.py on the real journal: every line once, in order, whatever journald does."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balena_agent.core.logline import LogLine, Source
from balena_agent.host import journal_reader
from balena_agent.host.journal_reader import JournalReader
from balena_agent.host.sigbus import BusErrors

pytestmark = pytest.mark.skipif(
    os.environ.get("BALENA_AGENT_TEST_DEVICE") != "1",
    reason="needs a virtual device with journald: set BALENA_AGENT_TEST_DEVICE=1 inside one",
)

IMAGE = "journal:1"
CONF = Path("/run/systemd/journald.conf.d/50-contract.conf")
JOURNALD = "systemd-journald.service"
PYTHON = "/usr/bin/python3"


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def journald(settings: str) -> None:
    """Restart journald with these settings."""
    CONF.parent.mkdir(parents=True, exist_ok=True)
    CONF.write_text(f"[Journal]\n{settings}\n")
    restart()


def restart() -> None:
    run("systemctl", "reset-failed", JOURNALD)  # systemd counts starts
    run("systemctl", "restart", JOURNALD)


@pytest.fixture(scope="module", autouse=True)
def without_limits() -> Iterator[None]:
    """journald's rate limit would throw lines away before anybody could read them."""
    journald("RateLimitIntervalSec=0")
    yield
    CONF.unlink()
    restart()


@pytest.fixture(scope="module", autouse=True)
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    archive = tmp_path_factory.mktemp("image") / "root.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(shutil.which("busybox") or "/bin/busybox", "bin/sh")
    run("docker", "import", str(archive), IMAGE)
    return IMAGE


class Follower:
    """A reader, what it has delivered, and the containers that it knows."""

    def __init__(self, bus_errors: BusErrors) -> None:
        self.bus_errors = bus_errors
        self.lines: list[LogLine] = []
        self.cursor = ""
        self.live = True
        self.look = journal_reader.LOOK_SECONDS
        self.since = 0.0
        self.known: dict[str, Source] = {}
        self.reader: JournalReader | None = None
        self.news = threading.Condition()

    def follow(self, after: str = "") -> None:
        self.reader = JournalReader.open(
            self.deliver, self.known.get, after, look=self.look, since=self.since,
            bus_errors=self.bus_errors,
        )  # fmt: skip

    def close(self) -> None:
        if self.reader:
            self.reader.close()
        self.reader = None

    def deliver(self, lines: tuple[LogLine, ...], cursor: str, live: bool) -> None:
        with self.news:
            self.lines += lines
            self.cursor, self.live = cursor, live
            self.news.notify_all()

    def wait(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        with self.news:
            assert self.news.wait_for(condition, seconds), self.lines[-5:]

    def of(self, service: str) -> list[str]:
        return [line.text for line in self.lines if line.service == service]


@pytest.fixture(scope="module")
def bus_errors() -> Iterator[BusErrors]:
    made = BusErrors()
    made.install()
    yield made
    made.close()


@pytest.fixture
def follower(bus_errors: BusErrors) -> Iterator[Follower]:
    follower = Follower(bus_errors)
    yield follower
    follower.close()
    left = run("docker", "ps", "-aq", "--filter", f"ancestor={IMAGE}").split()
    if left:
        run("docker", "rm", "-f", *left)


def container(follower: Follower, service: str, script: str, known: bool = True) -> str:
    """Create a container that shall run a script; its id."""
    words = ("--log-driver", "journald", IMAGE, "/bin/sh", "-c", script)
    made = run("docker", "create", *words)
    if known:
        follower.known[made] = Source(service, 7, 1)
    return made


def numbers(count: int) -> str:
    return f"/bin/sh -c 'i=0; while [ $i -lt {count} ]; do echo $i; i=$((i+1)); done'"


def counted(count: int) -> list[str]:
    return [str(number) for number in range(count)]


COUNTERS = ("one", "two", "three")


def begin_counting(follower: Follower, count: int) -> None:
    """Services that count at the same time."""
    run("docker", "start", *(container(follower, name, numbers(count)) for name in COUNTERS))


def have_counted(follower: Follower, count: int) -> None:
    """Every number of theirs is there, once and in order."""
    follower.wait(lambda: len(follower.lines) >= count * len(COUNTERS), 60)
    for service in COUNTERS:
        assert follower.of(service) == counted(count)


def test_lines_arrive_with_their_service_and_stream(follower: Follower) -> None:
    follower.follow()
    begun = time.time() * 1000
    run("docker", "start", container(follower, "web", "echo out; echo wörd"))
    run("docker", "start", container(follower, "db", "echo err >&2"))
    follower.wait(lambda: len(follower.lines) == 3)
    web = [line for line in follower.lines if line.service == "web"]
    (db,) = (line for line in follower.lines if line.service == "db")
    assert [(line.text, line.stderr) for line in web] == [("out", False), ("wörd", False)]
    assert (db.text, db.stderr, db.service_id, db.app_id) == ("err", True, 7, 1)
    assert all(begun - 1 <= line.time <= time.time() * 1000 for line in follower.lines)


def test_only_what_is_written_from_now_on_is_read(follower: Follower) -> None:
    first = container(follower, "web", "echo before")
    run("docker", "start", "-a", first)
    run("journalctl", "--sync")
    follower.follow()
    run("docker", "start", container(follower, "web", "echo after"))
    follower.wait(lambda: bool(follower.lines))
    assert follower.of("web") == ["after"]


def test_no_gap_and_no_double_while_journald_is_rotated_and_restarted(follower: Follower) -> None:
    follower.follow()
    begin_counting(follower, 3000)
    for _ in range(3):
        run("journalctl", "--rotate")
    journald("RateLimitIntervalSec=0")
    run("journalctl", "--rotate")
    have_counted(follower, 3000)


def test_no_gap_and_no_double_while_files_are_cut_off_all_the_time(follower: Follower) -> None:
    """journald takes the empty end off every file that it archives, whoever has it mapped: sooner
    or later a reader is struck (tests/unit/test_sigbus.py has a way that is sure)."""
    follower.follow()
    begin_counting(follower, 20_000)
    for _ in range(60):  # of 100 files and more journald would throw away the oldest, read or not
        run("journalctl", "--rotate")
    have_counted(follower, 20_000)


def test_old_files_may_be_thrown_away_once_they_are_read(follower: Follower) -> None:
    follower.follow()
    run("docker", "start", container(follower, "web", "echo before"))
    follower.wait(lambda: follower.of("web") == ["before"])
    run("journalctl", "--rotate")
    run("journalctl", "--vacuum-time=1s", "--vacuum-files=1")
    run("docker", "start", container(follower, "web", "echo after"))
    follower.wait(lambda: len(follower.lines) >= 2)
    assert follower.of("web") == ["before", "after"] and len(follower.lines) == 2


def live_files() -> list[Path]:
    """What journald writes to, as far as it has a name."""
    tops = (Path("/run/log/journal"), Path("/var/log/journal"))
    return [path for top in tops for path in top.glob("*/system.journal")]


@pytest.mark.parametrize("directory", [False, True], ids=["file", "directory"])
def test_deleted_under_the_pen_it_is_read_to_its_end(follower: Follower, directory: bool) -> None:
    """journald goes on writing into the deleted file for some seconds."""
    follower.follow()
    flow = "i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); sleep 0.05; done; echo end"
    run("docker", "start", container(follower, "web", flow))
    for lines in (30, 230):
        follower.wait(lambda lines=lines: len(follower.of("web")) > lines)  # type: ignore[misc]
        for path in live_files():
            shutil.rmtree(path.parent) if directory else path.unlink()
    follower.wait(lambda: "end" in follower.of("web"), 60)
    assert follower.of("web") == [*counted(400), "end"]
    assert not [line.text for line in follower.lines if line.system]
    restart()
    run("docker", "start", "-a", container(follower, "web", "echo after"))
    follower.wait(lambda: follower.of("web")[-1] == "after")
    assert live_files() and not [line.text for line in follower.lines if line.system]


def mapped() -> int:
    """Kilobytes of journal files in this process's memory."""
    total, journal = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-", line):
            journal = line.endswith(".journal")
        elif journal and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_without_inotify_it_is_looked_at_all_the_same(
    follower: Follower, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Root has 128 instances as a rule, and each container takes one."""
    from systemd import _reader

    left = []

    class Reader(_reader._Reader):  # type: ignore[misc]
        def fileno(self) -> int:
            if not left:
                raise OSError(errno.EMFILE, "Too many open files")
            left.append(self)
            return int(super().fileno())

    monkeypatch.setattr(_reader, "_Reader", Reader)
    follower.follow()
    begin_counting(follower, 3000)
    for _ in range(3):
        run("journalctl", "--rotate")
    restart()
    have_counted(follower, 3000)
    run("docker", "start", container(follower, "web", "echo blind"))
    follower.wait(lambda: follower.of("web") == ["blind"])
    left.append(None)
    deadline = time.monotonic() + 30
    while len(left) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run("docker", "start", container(follower, "web", "echo seeing"))
    follower.wait(lambda: follower.of("web") == ["blind", "seeing"])
    have_counted(follower, 3000)
    assert caplog.text.count("no inotify is left") == 1


@pytest.mark.parametrize(("quiet", "much"), [(10.0, 50), (0.0, 10**9)])
def test_it_is_opened_anew_without_gap_and_double(
    follower: Follower, monkeypatch: pytest.MonkeyPatch, quiet: float, much: int
) -> None:
    monkeypatch.setattr(journal_reader, "QUIET_SECONDS", quiet)
    monkeypatch.setattr(journal_reader, "MUCH", much)
    monkeypatch.setattr(journal_reader, "BATCH", 20)
    follower.follow()
    begin_counting(follower, 2000)
    have_counted(follower, 2000)
    run("docker", "start", container(follower, "web", "echo after"))
    follower.wait(lambda: follower.of("web") == ["after"])
    assert len(follower.lines) == 2000 * len(COUNTERS) + 1


def test_what_was_read_does_not_stay_in_memory(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("journalctl", "--rotate")
    run("journalctl", "--vacuum-files=1")  # to find a place in many files takes some memory, too
    follower.look = 0.1
    follower.follow()
    run("docker", "start", container(follower, "web", numbers(5000)))
    follower.wait(lambda: len(follower.lines) == 5000)
    most, end = mapped(), time.monotonic() + 20
    monkeypatch.setattr(journal_reader, "QUIET_SECONDS", 0.2)
    assert most > 2000
    while mapped() > most / 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert mapped() <= most / 2


def test_old_files_thrown_away_when_it_is_opened_anew_are_no_gap(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower.follow()
    run("docker", "start", container(follower, "web", "echo before"))
    follower.wait(lambda: follower.of("web") == ["before"])
    run("journalctl", "--rotate")
    run("journalctl", "--vacuum-time=1s", "--vacuum-files=1")
    monkeypatch.setattr(journal_reader, "MUCH", 1)
    run("docker", "start", container(follower, "web", "echo after"))
    follower.wait(lambda: len(follower.lines) >= 2)
    assert follower.of("web") == ["before", "after"] and len(follower.lines) == 2


def test_the_cursor_goes_on_where_another_reader_has_ended(follower: Follower) -> None:
    follower.follow()
    pause = "[ $((i % 100)) != 0 ] || sleep 0.1"
    slow = f"i=0; while [ $i -lt 600 ]; do echo $i; i=$((i+1)); {pause}; done"
    run("docker", "start", container(follower, "web", slow))
    for reached in (100, 250, 400):
        follower.wait(lambda reached=reached: len(follower.lines) >= reached)  # type: ignore[misc]
        follower.close()
        follower.follow(follower.cursor)
    follower.wait(lambda: len(follower.lines) >= 600)
    assert follower.of("web") == counted(600) and follower.live


def test_a_backlog_is_read_from_the_cursor_and_not_called_live(follower: Follower) -> None:
    follower.follow()
    run("docker", "start", container(follower, "web", "echo first"))
    follower.wait(lambda: bool(follower.lines))
    follower.close()
    run("docker", "start", "-a", container(follower, "web", numbers(3000)))
    run("journalctl", "--sync")
    seen: list[bool] = []
    deliver = follower.deliver
    follower.deliver = lambda *batch: (seen.append(batch[2]), deliver(*batch))[1]  # type: ignore[method-assign]
    follower.follow(follower.cursor)
    follower.wait(lambda: len(follower.lines) >= 3001)
    assert follower.of("web")[1:] == counted(3000)
    assert seen[0] is False and seen[-1] is True


def test_a_cursor_of_another_journal_is_told_as_a_gap(follower: Follower) -> None:
    gone = f"s={uuid.uuid4().hex};i=1;b={uuid.uuid4().hex};m=1;t=1;x=1"
    run("docker", "start", "-a", container(follower, "web", "echo here"))
    run("journalctl", "--sync")
    follower.follow(gone)
    follower.wait(lambda: "here" in follower.of("web"))
    assert follower.lines[0].system and "lost" in follower.lines[0].text


def test_the_journal_may_move_to_another_directory(follower: Follower) -> None:
    """Persistent logging is switched on and off while somebody follows (spec 30 §15.4)."""
    follower.look = 0.2
    follower.follow()
    wanted = []
    try:
        for number, storage in enumerate(("volatile", "persistent", "volatile", "persistent")):
            journald(f"RateLimitIntervalSec=0\nStorage={storage}")
            wanted.append(f"line {number}")
            run("docker", "start", container(follower, "web", f"echo {wanted[-1]}"))
            follower.wait(lambda: len(follower.of("web")) >= len(wanted))
    finally:
        journald("RateLimitIntervalSec=0")
    assert follower.of("web") == wanted


def test_a_container_that_is_not_known_yet_loses_nothing(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_reader, "_HOLD_SECONDS", 60.0)
    follower.follow()
    made = container(follower, "web", "echo a; echo b; sleep 2; echo c", known=False)
    run("docker", "start", made)
    run("docker", "start", container(follower, "db", "echo passes by"))
    follower.wait(lambda: follower.of("db") == ["passes by"])
    assert follower.of("web") == []
    follower.known[made] = Source("web", 7, 1)
    follower.wait(lambda: len(follower.of("web")) == 3)
    assert follower.of("web") == ["a", "b", "c"]


def test_strangers_are_left_out(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_reader, "_HOLD_SECONDS", 0.1)
    follower.follow()
    stranger = container(follower, "", "echo mine; sleep 1; echo mine", known=False)
    run("docker", "start", "-a", stranger)
    run("docker", "start", container(follower, "web", "echo ours"))
    follower.wait(lambda: bool(follower.lines))
    assert [line.text for line in follower.lines] == ["ours"]


def test_nobody_can_write_in_the_name_of_a_service(follower: Follower) -> None:
    """Fields without an underscore can be forged by whoever may write to the journal."""
    follower.follow()
    made = container(follower, "web", "echo true")
    forge = (
        "from systemd import journal; journal.sendv('MESSAGE=forged', 'PRIORITY=6',"
        f" 'CONTAINER_ID_FULL={made}', 'SYSLOG_IDENTIFIER=balena-agent', 'STEP=start',"
        " '_SYSTEMD_UNIT=docker.service')"
    )
    run(PYTHON, "-c", forge)
    run("systemd-run", "--quiet", "--wait", "--unit=forger", PYTHON, "-c", forge)
    run("docker", "start", made)
    follower.wait(lambda: bool(follower.lines))
    assert [line.text for line in follower.lines] == ["true"]


def test_what_the_agent_does_is_read_from_its_own_unit(follower: Follower) -> None:
    follower.follow()
    say = (
        "from systemd import journal\n"
        "said = 'MESSAGE=Starting', 'PRIORITY=6', 'SYSLOG_IDENTIFIER=balena-agent'\n"
        "journal.sendv(*said, 'STEP=start'); journal.sendv(*said)"
    )
    run("systemd-run", "--quiet", "--wait", "--unit=balena-agent.service", PYTHON, "-c", say)
    run("docker", "start", container(follower, "web", "echo end"))
    follower.wait(lambda: bool(follower.of("web")))
    assert [(line.text, line.system) for line in follower.lines] == [
        ("Starting", True), ("end", False),
    ]  # fmt: skip


def test_what_journald_suppresses_is_told(follower: Follower) -> None:
    """Each of journald's own remarks, with its number. journald makes one at the unit's first
    message after an interval; but it forgets what it has to say when an interval is over and some
    other unit writes first. So the flood goes on without a pause, over the ends of several
    intervals, and what is told is compared with the remarks, not with what was written."""
    journald("RateLimitIntervalSec=1s\nRateLimitBurst=10")
    flood = f"e=$(($(date +%s)+5)); while [ $(date +%s) -lt $e ]; do {numbers(100)}; sleep 0.05;"
    try:
        since = time.time()
        follower.follow()
        wrote = run("docker", "start", "-a", container(follower, "web", f"{flood} done"))
        run("journalctl", "--sync")
        assert remarks(since), "journald has suppressed something"
        follower.wait(lambda: [m.text for m in follower.lines if m.system] == remarks(since))
    finally:
        journald("RateLimitIntervalSec=0")
    markers = [line for line in follower.lines if line.system]
    assert all(line.stderr for line in markers)
    assert any("docker.service" in line.text for line in markers)
    assert 0 < len(follower.of("web")) < len(wrote.splitlines())


def remarks(since: float) -> list[str]:
    """What journald says that it has suppressed, in our words."""
    words = (f"--since=@{since:.6f}", "-o", "json", "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e")
    said = [json.loads(line) for line in run("journalctl", *words).splitlines()]
    return [
        f"{entry['N_DROPPED']} log lines were lost: {entry['MESSAGE'].split()[-1]} wrote too many"
        for entry in said
    ]


def test_H52_a_long_line_is_one_line(follower: Follower) -> None:
    follower.follow()
    script = "i=0; while [ $i -lt 4000 ]; do printf 0123456789; i=$((i+1)); done; echo; printf tail"
    run("docker", "start", container(follower, "web", script))
    follower.wait(lambda: len(follower.lines) >= 2)
    assert follower.of("web") == ["0123456789" * 1000 + "[...]", "tail"]


def test_closing_is_quick_and_final(follower: Follower) -> None:
    follower.follow()
    began = time.monotonic()
    follower.close()
    assert time.monotonic() - began < 1.9
    assert not [thread for thread in threading.enumerate() if thread.name == "journal"]
    run("docker", "start", "-a", container(follower, "web", "echo late"))
    assert follower.lines == []


def test_what_was_written_since_a_moment_is_read_first(follower: Follower) -> None:
    run("docker", "start", "-a", container(follower, "web", "echo long ago"))
    run("journalctl", "--sync")
    time.sleep(0.01)
    since = time.time()
    run("docker", "start", "-a", container(follower, "web", "echo before"))
    run("journalctl", "--sync")
    follower.since = since
    follower.follow()
    follower.wait(lambda: follower.live)
    run("docker", "start", container(follower, "web", "echo after"))
    follower.wait(lambda: len(follower.of("web")) >= 2)
    assert follower.of("web") == ["before", "after"]


def test_the_end_of_a_backlog_is_told_also_when_nothing_is_in_it(follower: Follower) -> None:
    follower.live = False
    follower.since = time.time()
    follower.follow()
    follower.wait(lambda: follower.live)
    assert follower.lines == []


def test_no_place_to_go_on_from_is_told_while_entries_are_kept_back(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_reader, "_HOLD_SECONDS", 60.0)
    follower.follow()
    made = container(follower, "web", "echo a", known=False)
    run("docker", "start", made)
    run("docker", "start", "-a", container(follower, "db", "echo passes by"))
    follower.wait(lambda: follower.of("db") == ["passes by"])
    assert follower.cursor == ""
    follower.known[made] = Source("web", 7, 1)
    follower.wait(lambda: follower.of("web") == ["a"])
    assert follower.cursor


def test_a_place_is_told_when_what_was_kept_back_was_a_strangers(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_reader, "_HOLD_SECONDS", 3.0)
    follower.follow()
    run("docker", "start", container(follower, "", "echo mine", known=False))
    run("docker", "start", "-a", container(follower, "db", "echo passes by"))
    follower.wait(lambda: follower.of("db") == ["passes by"])
    follower.wait(lambda: bool(follower.cursor))
    assert [line.text for line in follower.lines] == ["passes by"]


def test_old_lines_of_a_stranger_are_not_kept_back(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose container it is would be known by now."""
    since = time.time()
    run("docker", "start", "-a", container(follower, "", "echo mine", known=False))
    run("docker", "start", "-a", container(follower, "web", "echo ours"))
    run("journalctl", "--sync")
    monkeypatch.setattr(journal_reader, "_HOLD_SECONDS", 0.0)
    follower.since, follower.live = since, False
    follower.follow()
    follower.wait(lambda: follower.live)
    assert follower.of("web") == ["ours"] and follower.cursor
