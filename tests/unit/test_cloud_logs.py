"""cloud/logs.py turn by turn with a clock in the hand of the test, then against the small cloud."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import device_states
import pytest
from certificates import self_signed
from cloud import FakeCloud

from balena_agent.cloud import logs
from balena_agent.cloud.bookmark import CURSOR
from balena_agent.cloud.client import Reply
from balena_agent.cloud.logs import LogUpload
from balena_agent.cloud.timed import Timed
from balena_agent.cloud.upload import Upload
from balena_agent.core.errors import InvalidInput, Unavailable
from balena_agent.core.logline import LogLine
from balena_agent.core.observed import Container, Observed
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.spec import ContainerSpec
from balena_agent.core.target import read_v3
from balena_agent.host.logmark import LogMark
from balena_agent.runtime.loghub import Batch, Deliver
from balena_agent.runtime.state import Published
from balena_agent.watchdog import Pulse

UUID = "d0" * 16
KEY = "the-key-of-the-device"
FACTS = replace(
    device_states.MANAGED, registered=True, device_uuid=UUID, device_api_key=KEY,
    api_endpoint="http://cloud",
)  # fmt: skip
WALL = 1_766_000_000.0


def line(text: str) -> LogLine:
    return LogLine(int(WALL * 1000), text, False, "web", 7, 1)


class Journal:
    """Entries with their cursors; a reader is told those behind a cursor, then what is written."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, str]] = []
        self.opened: list[tuple[str, float]] = []
        self.now = 0.0
        self.broken = False
        self._deliver: Deliver | None = None

    def open(self, deliver: Deliver, after: str, since: float) -> Journal:
        if self.broken:
            raise Unavailable("There is no journal")
        assert self._deliver is None, "another reader is still open"
        self.opened.append((after, since))
        place = int(after) if after else sum(at < since for at, _ in self.entries)
        self._deliver = deliver
        missed = [line(text) for _, text in self.entries[place:]]
        deliver(Batch(missed, str(len(self.entries)) if self.entries else "", True))
        return self

    def close(self) -> None:
        self._deliver = None

    @property
    def read(self) -> bool:
        return self._deliver is not None

    def write(self, *texts: str, at: float = 0.0, place: bool = True) -> None:
        self.entries += [(at or WALL + self.now, text) for text in texts]
        if self._deliver:
            cursor = str(len(self.entries)) if place else ""
            self._deliver(Batch([line(text) for text in texts], cursor, True))


@dataclass
class Cloud:
    """The other end: what came, and how it behaves."""

    streams: list[Wire] = field(default_factory=list)
    asked: list[tuple[float, str, str, str]] = field(default_factory=list)
    refuses: Reply | None = None
    away: bool = False
    lands: bool = True
    end: Reply = field(default_factory=lambda: Reply(201, {}, b""))

    @property
    def messages(self) -> list[str]:
        return [text for wire in self.streams for text in wire.texts]


class Wire:
    """One stream, as `Upload`."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.texts: list[str] = []
        self.ended = self.closed = self.broken = False

    def send(self, data: bytes) -> None:
        assert not (self.ended or self.closed)
        if self.broken:
            raise Unavailable("it broke")
        self.texts += [json.loads(raw)["message"] for raw in data.splitlines()]

    def answer(self) -> Reply | None:
        if self.broken:
            raise Unavailable("it broke")
        return self.cloud.refuses

    def landed(self) -> bool:
        return self.cloud.lands

    def finish(self, seconds: float) -> Reply:
        self.ended = True
        return self.cloud.end

    def close(self) -> None:
        self.closed = True


class Mark:
    text = ""

    def read(self) -> str:
        return self.text

    def write(self, text: str) -> None:
        self.text = text


class World:
    """Everything around the thread. `restart` makes the next process, of the same boot or not."""

    def __init__(self, **facts: Any) -> None:
        self.now = 0.0
        self.snapshot = Snapshot(facts=replace(FACTS, **facts), looked=True)
        self.published = Published(self.snapshot)
        self.journal, self.cloud, self.mark = Journal(), Cloud(), Mark()
        self.kept: dict[str, Any] = {}
        self.writes = 0
        self.upload = self.process()

    def process(self) -> LogUpload:
        return LogUpload(
            self.published, self, Pulse("test", 60.0, lambda: self.now), self.journal.open,
            self.mark, lambda: 0.0, Timed(lambda: Reply(0, {}, b""), lambda: True), self.open,
            lambda: self.now, lambda: WALL + self.now,
        )  # fmt: skip

    def restart(self, boot: bool = False) -> None:
        """The process was killed."""
        self.journal.close()
        if boot:
            self.mark.text = ""
        self.upload = self.process()

    def open(self, endpoint: str, key: str, path: str) -> Wire:
        self.cloud.asked.append((self.now, endpoint, key, path))
        if self.cloud.away:
            raise Unavailable("nobody is there")
        self.cloud.streams.append(Wire(self.cloud))
        return self.cloud.streams[-1]

    def go(self, seconds: float = 0.5) -> None:
        """Let the thread live for so long; it is woken at least every 50 ms."""
        until = self.now + seconds
        while self.now < until:
            rest = self.upload.turn()
            self.now = self.journal.now = min(self.now + max(0.001, min(rest, 0.05)), until)

    def show(self, **changes: Any) -> None:
        self.published.publish(replace(self.published.current, **changes))

    def configure(self, **config: str) -> None:
        document = {UUID: {"name": "dev", "config": config, "apps": {}}}
        self.show(target=read_v3(document, UUID))

    def setting(self, key: str) -> Any:
        return json.loads(json.dumps(self.kept.get(key)))

    def set_setting(self, key: str, value: Any) -> None:
        self.writes += 1
        self.kept[key] = value

    @property
    def attempts(self) -> list[float]:
        return [round(at, 1) for at, *_ in self.cloud.asked]


# -- as long as all is well


def test_C37_lines_go_up_in_order_under_the_devices_name() -> None:
    world = World()
    world.go()
    assert not world.cloud.asked  # nothing to say
    world.journal.write("a", "b")
    world.go()
    world.journal.write("c")
    world.go()
    assert world.cloud.messages == ["a", "b", "c"] and len(world.cloud.streams) == 1
    (_, *asked), *_ = world.cloud.asked
    assert asked == ["http://cloud", KEY, f"/device/v2/{UUID}/log-stream"]


def test_C46_an_idle_stream_ends_well_and_the_next_line_opens_another() -> None:
    world = World()
    world.journal.write("a")
    world.go(59)
    assert not world.cloud.streams[0].ended
    world.go(3)
    assert world.cloud.streams[0].ended and world.cloud.streams[0].closed
    assert world.kept[CURSOR]["cursor"] == "1"
    world.go(600)
    assert len(world.cloud.streams) == 1
    world.journal.write("b")
    world.go()
    assert world.cloud.streams[1].texts == ["b"]


def test_a_stream_does_not_live_for_ever() -> None:
    world = World()
    for number in range(130):
        world.journal.write(str(number))
        world.go(30)
    assert world.cloud.messages == [str(n) for n in range(130)]
    assert [wire.ended for wire in world.cloud.streams] == [True, False]


def test_C47_logs_may_have_an_address_of_their_own() -> None:
    world = World(logs_endpoint="http://logs")
    world.journal.write("a")
    world.go()
    assert world.cloud.asked[0][1] == "http://logs"


# -- when they are not wanted


def test_C45_logging_that_is_switched_off_sends_nothing_later_either() -> None:
    world = World()
    world.go()
    world.journal.write("a")
    world.go(15)
    world.configure(SUPERVISOR_LOG_CONTROL="false")
    world.go()
    assert world.cloud.streams[0].ended and not world.journal.read
    assert not world.mark.text and world.kept.get(CURSOR) is None
    world.journal.write("silent")
    world.go(100)
    world.restart()
    world.go()
    assert not world.journal.read
    world.journal.write("still silent")
    world.go(5)
    world.configure(SUPERVISOR_LOG_CONTROL="true")
    world.go()
    world.journal.write("b")
    world.go()
    assert world.cloud.messages == ["a", "b"]


def test_C33_local_mode_sends_nothing() -> None:
    world = World()
    world.go()
    world.configure(SUPERVISOR_LOCAL_MODE="true")
    world.go()
    world.journal.write("local")
    world.go()
    world.configure(SUPERVISOR_LOCAL_MODE="false")
    world.go()
    world.journal.write("b")
    world.go()
    assert world.cloud.messages == ["b"]


def test_before_registration_and_before_the_first_look_nothing_is_read() -> None:
    world = World(registered=False)
    world.go()
    world.show(facts=FACTS, looked=False)
    world.go()
    assert not world.journal.opened
    world.show(looked=True)
    world.go(1)
    assert world.journal.read


def test_a_service_may_keep_its_lines_to_itself() -> None:
    world = World()
    spec = ContainerSpec("web:1", {"Env": {"BALENA_LOGS_LEVEL": "none"}})
    web = Container("id", "app", 1, "web", 7, None, "running", spec)
    world.show(observed=Observed(containers={"id": web}))
    world.go()
    world.journal.write("private")
    world.go()
    assert not world.cloud.asked and json.loads(world.mark.text)["cursor"] == "1"


# -- where it begins


def test_a_new_device_begins_with_the_last_minute() -> None:
    world = World()
    world.journal.write("long ago", at=WALL - 100)
    world.journal.write("early", at=WALL - 20)
    world.go()
    assert world.cloud.messages == ["early"]


@pytest.mark.parametrize("boot", [False, True])
def test_what_a_new_device_writes_before_its_cloud_is_there_survives_restarts(boot: bool) -> None:
    world = World()
    world.cloud.away = True
    world.journal.write("too old", at=WALL - 61)
    world.journal.write("a")
    world.go(200)
    world.restart(boot)
    world.journal.write("b")
    world.go(200)
    world.restart(boot)
    world.cloud.away = False
    world.go(10)
    assert world.cloud.messages == ["a", "b"]


def test_what_was_noted_of_the_beginning_may_be_damaged_or_ahead() -> None:
    for since in ("x", [], True, None, WALL + 1e6):
        world = World()
        world.kept[CURSOR] = {"endpoint": "http://cloud", "uuid": UUID, "since": since}
        world.journal.write("a")
        world.go()
        assert world.cloud.messages == ["a"]


def test_H53_a_kill_loses_no_line_and_doubles_none() -> None:
    world = World()
    world.go()
    world.journal.write("1", "2", "3")
    world.go(0.3)
    assert world.cloud.messages == ["1", "2", "3"]
    world.restart()
    world.journal.write("4", "5", "6")
    world.go(0.3)
    assert world.cloud.messages == ["1", "2", "3", "4", "5", "6"]
    assert [after for after, _ in world.journal.opened] == ["", "3"]


def test_H53_a_place_that_is_found_without_a_line_counts() -> None:
    """The reader may know only later where one could go on."""
    world = World()
    world.go()
    world.journal.write("1", place=False)
    world.go()
    assert world.mark.text == ""
    world.journal.write()
    world.go()
    world.restart()
    world.journal.write("2")
    world.go()
    assert world.cloud.messages == ["1", "2"]


def test_H53_what_the_other_side_has_not_confirmed_is_sent_again_after_a_kill() -> None:
    world = World()
    world.cloud.lands = False
    world.journal.write("1")
    world.go(30)
    world.restart()
    world.go()
    assert world.cloud.messages == ["1", "1"]


def test_after_a_power_cut_it_goes_on_behind_what_the_store_has() -> None:
    world = World()
    world.go()
    for number in range(100):
        world.journal.write(str(number))
        world.go(1)
    assert world.writes <= 3
    world.restart(boot=True)
    world.go()
    first = int(world.cloud.streams[1].texts[0])
    assert 20 <= first <= 90 and world.cloud.streams[1].texts[-1] == "99"


def test_another_cloud_gets_nothing_that_was_meant_for_the_first() -> None:
    world = World()
    world.journal.write("a")
    world.go(20)
    world.show(facts=replace(FACTS, api_endpoint="http://other"))
    world.go()
    world.journal.write("b")
    world.go()
    assert world.cloud.streams[0].ended and world.cloud.streams[1].texts == ["b"]
    assert world.cloud.asked[1][1] == "http://other"
    world.show(facts=FACTS)
    world.go()
    world.journal.write("c")
    world.go()
    assert world.cloud.streams[2].texts == ["c"]


def test_a_new_key_is_used_at_once_and_no_back_off_counts_for_it() -> None:
    world = World()
    world.cloud.refuses = Reply(401, {}, b"")
    world.journal.write("a")
    world.go(20)
    assert world.attempts == [0.0, pytest.approx(5.0, abs=0.2)]
    world.cloud.refuses = None
    world.show(facts=replace(FACTS, device_api_key="fresh"))
    world.go()
    assert world.cloud.asked[-1][2] == "fresh" and world.cloud.streams[-1].texts == ["a"]


# -- when it goes wrong


def test_C40_a_refusal_at_once_costs_no_line() -> None:
    world = World()
    world.cloud.refuses = Reply(401, {}, b"")
    world.journal.write("a", "b")
    world.go(2)
    assert not world.journal.read and world.mark.text == ""
    world.cloud.refuses = None
    world.journal.write("c")
    world.go(10)
    assert len(world.attempts) == 2 and 5 <= world.attempts[1] - world.attempts[0] <= 5.2
    assert world.cloud.streams[1].texts == ["a", "b", "c"]


def test_a_refusal_is_heard_while_lines_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a slow line more is written than sent: nothing of that may keep us from listening."""
    world = World()
    sent: list[bytes] = []

    def slowly(wire: Wire, data: bytes) -> None:
        world.now += 1
        sent.append(data)
        world.journal.write("more")
        if len(sent) == 4:
            wire.cloud.refuses = Reply(503, {}, b"")
        assert len(sent) < 50

    monkeypatch.setattr(Wire, "send", slowly)
    world.journal.write("a")
    world.upload.turn()
    world.upload.turn()
    assert world.cloud.streams[0].closed and len(sent) == 4


def test_lines_that_never_end_do_not_keep_a_stream_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    count = 0

    def slowly(wire: Wire, data: bytes) -> None:
        nonlocal count
        count += 1
        world.now += 60
        world.journal.write("x" * 9000)
        assert count < 1000

    monkeypatch.setattr(Wire, "send", slowly)
    world.journal.write("a")
    world.upload.turn()
    world.upload.turn()
    assert world.cloud.streams[0].ended


def test_a_first_refusal_is_not_for_long_whatever_came_before() -> None:
    world = World()
    world.cloud.away = True
    world.journal.write("a")
    world.go(2)
    world.cloud.away, world.cloud.refuses = False, Reply(401, {}, b"")
    world.go(4)
    world.cloud.refuses = None
    world.go(6)
    assert world.cloud.messages == ["a"]
    assert world.attempts == [pytest.approx(at, abs=0.2) for at in (0, 5, 10)]


def test_C41_a_connection_that_breaks_is_followed_by_one_that_misses_nothing() -> None:
    world = World()
    for number in range(300):
        world.journal.write(str(number))
        world.go(0.1)
        if number == 200:
            world.cloud.streams[-1].broken = True
    world.go(10)
    assert len(world.cloud.streams) == 2
    first, second = (list(map(int, wire.texts)) for wire in world.cloud.streams)
    assert sorted({*first, *second}) == list(range(300)) and second == sorted(second)
    assert 0 < len({*first} & {*second}) <= 102  # no more than ten seconds


def test_a_cloud_that_is_away_is_asked_ever_more_rarely_and_nothing_is_read_meanwhile() -> None:
    world = World()
    world.cloud.away = True
    world.journal.write("a")
    world.go(700)
    assert [b - a for a, b in zip(world.attempts, world.attempts[1:], strict=False)] == [
        pytest.approx(wait, abs=0.2) for wait in (5, 10, 20, 40, 80, 160, 300)
    ]
    assert not world.journal.read and len(world.journal.opened) == 1
    world.journal.write("b")
    world.cloud.away = False
    world.go(300)
    assert world.cloud.messages == ["a", "b"]


def test_a_way_back_cuts_the_wait_short() -> None:
    world = World()
    world.cloud.away = True
    world.journal.write("a")
    world.go(200)
    world.cloud.away = False
    world.upload.reachable()
    world.go(1)
    assert world.cloud.messages == ["a"]


def test_a_busy_cloud_is_left_alone_for_as_long_as_it_says() -> None:
    world = World()
    world.cloud.refuses = Reply(503, {"retry-after": "120"}, b"")
    world.journal.write("a")
    world.go(2)
    world.cloud.refuses = None
    world.go(130)
    assert world.attempts == [0.0, pytest.approx(120.1, abs=0.3)]
    assert world.cloud.streams[1].texts == ["a"]


def test_a_late_refusal_is_meant_for_long() -> None:
    """The cloud lets a device that it has deleted talk for most of a minute."""
    world = World()
    for number in range(55):
        world.journal.write(str(number))
        world.go(1)
    world.cloud.refuses = Reply(401, {}, b"")
    world.go(250)
    assert len(world.attempts) == 1
    world.go(60)
    assert len(world.attempts) == 2


def test_an_end_that_the_cloud_does_not_confirm_is_no_defect() -> None:
    world = World()
    world.journal.write("a")
    world.cloud.end = Reply(500, {}, b"")
    world.go(65)
    assert world.cloud.messages == ["a"]  # it was certain long before
    world.journal.write("b")
    world.go(10)
    assert world.cloud.messages == ["a", "b"]


def test_without_a_journal_nothing_is_sent_and_it_is_tried_again() -> None:
    world = World()
    world.journal.broken = True
    world.journal.write("a")
    world.go(30)
    assert not world.cloud.asked
    world.journal.broken = False
    world.go(60)
    assert world.cloud.messages == ["a"]


def test_a_mark_that_is_damaged_or_of_another_device_does_not_count() -> None:
    for text in ("{", "[]", json.dumps({"endpoint": "http://cloud", "uuid": "x", "cursor": "9"})):
        world = World()
        world.mark.text = text
        world.kept[CURSOR] = {"endpoint": "http://cloud", "uuid": UUID, "cursor": "1"}
        world.journal.write("a", "b")
        world.go()
        assert world.cloud.messages == ["b"]


# -- the real thread and a real connection


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with FakeCloud(keys={UUID: KEY}) as made:
        yield made


def until(wanted: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def running(cloud: FakeCloud, mark: Mark | LogMark | None = None) -> Iterator[World]:
    """A world whose thread lives, and talks to the small cloud."""
    world = World(api_endpoint=cloud.url)
    world.upload = LogUpload(
        world.published, world, Pulse("test", 600.0), world.journal.open, mark or world.mark,
        lambda: 0.0, Timed(lambda: Reply(0, {}, b""), lambda: True),
        wall=lambda: WALL,
    )  # fmt: skip
    world.upload.thread.start()
    try:
        yield world
    finally:
        world.upload.stop()
        assert not world.upload.thread.is_alive()


def test_C37_a_real_stream_has_the_form_that_the_cloud_takes(
    cloud: FakeCloud, tmp_path: Any
) -> None:
    said = [f"line {n} ü\u2028" for n in range(100)]
    with running(cloud, LogMark(tmp_path / "log-mark")) as world:
        until(lambda: world.journal.read)
        world.journal.write(*said)
        until(lambda: cloud.messages(7) == said)
        (stream,) = cloud.streams
        assert stream.headers["content-type"] == "application/x-ndjson"
        assert stream.headers["authorization"] == f"Bearer {KEY}"
        assert "user-agent" not in stream.headers and not stream.whole
        until(lambda: (tmp_path / "log-mark").exists())
        noted = json.loads((tmp_path / "log-mark").read_text())
        assert noted == {"endpoint": cloud.url, "uuid": UUID, "cursor": "100"}
    until(lambda: stream.whole)
    assert stream.problem == "" and world.kept[CURSOR] == noted


def test_a_real_refusal_is_understood(cloud: FakeCloud) -> None:
    cloud.log_status = 401
    upload = Upload.open(cloud.url, KEY, f"/device/v2/{UUID}/log-stream")
    reply = None

    def answered() -> bool:
        nonlocal reply
        reply = upload.answer()
        return reply is not None

    until(answered)
    upload.close()
    assert reply is not None and reply.status == 401


def test_C41_a_real_reset_costs_no_line(cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "reopen_after", lambda *_: 0.1)
    cloud.log_cut = 20
    with running(cloud) as world:
        until(lambda: world.journal.read)
        for number in range(40):
            world.journal.write(str(number))
            time.sleep(0.01)
        until(lambda: set(cloud.messages(7)) == {str(n) for n in range(40)})
        assert len(cloud.streams) == 2
        assert cloud.streams[1].lines[0]["message"] == "0"  # nothing was certain yet


def test_a_deaf_cloud_holds_up_nobody(cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts the stream and reads nothing: whoever writes does not wait, and what neither the
    cloud nor its kernel has is not taken as arrived. The text is one that cannot be packed small:
    else the cloud's kernel would have it all."""
    sent: list[int] = []
    send = Upload.send
    monkeypatch.setattr(Upload, "send", lambda up, data: (sent.append(len(data)), send(up, data)))
    chance = random.Random(7)
    cloud.log_deaf = True
    with running(cloud) as world:
        until(lambda: world.journal.read)
        texts = [chance.randbytes(3000).hex() for _ in range(2000)]
        begun = time.monotonic()
        for text in texts:
            world.journal.write(text)
        try:
            assert time.monotonic() - begun < 5.0
            until(lambda: sum(sent) >= 50_000)
            assert not world.mark.text or json.loads(world.mark.text)["cursor"] != "2000"
        finally:
            cloud.log_deaf = False
        until(lambda: world.mark.text and json.loads(world.mark.text)["cursor"] == "2000")
        (stream,) = cloud.streams
        assert stream.lines[0]["message"] == texts[0]


def test_what_cannot_be_opened_says_why_without_the_key(cloud: FakeCloud) -> None:
    with pytest.raises(InvalidInput) as odd:
        Upload.open(cloud.url, "a\nsecret", "/x")
    assert "secret" not in str(odd.value)
    with pytest.raises(InvalidInput):
        Upload.open("ftp://cloud", KEY, "/x")
    with pytest.raises(InvalidInput):
        Upload.open(cloud.url, KEY, "/x y")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable):
        Upload.open(f"http://127.0.0.1:{port}", KEY, "/x")


def test_a_cloud_that_goes_away_is_noticed(cloud: FakeCloud) -> None:
    upload = Upload.open(cloud.url, KEY, f"/device/v2/{UUID}/log-stream")
    upload.send(b'{"message":"a","timestamp":1766000000123,"serviceId":1}\n')
    until(lambda: len(cloud.logs) == 1)
    until(upload.landed)
    assert upload.answer() is None
    cloud.stop()

    def gone() -> bool:
        try:
            return upload.answer() is not None
        except Unavailable:
            return True

    until(gone)
    upload.close()
    assert threading.active_count() < 50


def test_C49_a_stream_over_tls(
    cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS has bytes of its own on the wire, which are no answer; and a certificate is checked."""
    context, certificate = self_signed(tmp_path)
    server = cloud._server
    assert server is not None
    server.socket = context.wrap_socket(server.socket, server_side=True)
    address, path = f"https://127.0.0.1:{cloud.port}", f"/device/v2/{UUID}/log-stream"
    with pytest.raises(Unavailable, match="certificate"):
        Upload.open(address, KEY, path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    upload = Upload.open(address, KEY, path)
    for number in range(3):
        upload.send(b'{"message":"%d","timestamp":1766000000123,"serviceId":1}\n' % number)
        until(lambda number=number: cloud.messages(1)[-1:] == [str(number)])  # type: ignore[misc]
        assert upload.answer() is None
    until(upload.landed)
    assert upload.finish(5.0).status == 201
    upload.close()
    assert cloud.streams[0].whole and cloud.streams[0].problem == ""
