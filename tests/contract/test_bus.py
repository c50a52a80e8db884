"""host/bus.py against a real bus daemon: deadlines, errors, loss, identity, unclean strings."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from private_bus import Daemon, eventually

from balena_agent.core.errors import Broken, BusUnavailable, DeadlineExceeded, NotFound
from balena_agent.host.bus import Bus, Reply
from balena_agent.host.connection import Connection
from balena_agent.host.wire import (
    BusRefusal,
    Call,
    Match,
    Message,
    MessageFlag,
    MessageType,
    Signal,
    Variant,
    plain,
)

NAME, PATH, FACE = "test.Service", "/test/object", "test.Face"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.kill()


@pytest.fixture
def service(daemon: Daemon) -> Iterator[Bus]:
    bus = Bus(daemon.address)
    bus.start()
    bus.serve(answer)
    bus.request_name(NAME)
    yield bus
    bus.close()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Bus]:
    bus = Bus(daemon.address)
    bus.start()
    yield bus
    bus.close()


async def answer(call: Call) -> Reply:
    """What the service of these tests does, by the member's name."""
    match call.member:
        case "Echo":
            return call.signature, call.body
        case "Who":
            await asyncio.sleep(0.02)
            return "s", (call.sender,)
        case "Never":
            await asyncio.sleep(3600)
        case "Missing":
            raise NotFound("no such service: web")
        case "Defect":
            raise ValueError("secret in /etc/passwd")
        case "Misfit":
            return "u", ("not a number",)
        case "Interactive":
            return "b", (call.interactive,)
        case "Pipe":
            out, into = os.pipe()
            os.write(into, b"hello")
            os.close(into)
            return "sh", ("a pipe", out)
    return "", ()


def test_a_service_that_never_answers_costs_only_the_deadline(service: Bus, client: Bus) -> None:
    with pytest.raises(DeadlineExceeded, match=r"test\.Face\.Never of test\.Service"):
        client.call(NAME, PATH, FACE, "Never", timeout=0.2)
    assert client.call(NAME, PATH, FACE, "Echo", "s", ["still here"]) == ["still here"]


def test_a_name_that_nobody_has_is_unavailable(client: Bus) -> None:
    with pytest.raises(BusUnavailable, match=r"test\.Absent"):
        client.call("test.Absent", PATH, FACE, "Echo")


def test_a_caller_whose_service_dies_is_told_at_once(daemon: Daemon, client: Bus) -> None:
    dying = Bus(daemon.address)
    dying.start()
    dying.serve(answer)
    dying.request_name("test.Dying")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.call, "test.Dying", PATH, FACE, "Never", timeout=20)
        dying.probe()
        dying.close()
        with pytest.raises(BusUnavailable):
            call.result(10)


def test_errors_of_ours_travel_under_their_name(service: Bus, client: Bus) -> None:
    with pytest.raises(BusRefusal, match="no such service: web") as caught:
        client.call(NAME, PATH, FACE, "Missing")
    assert caught.value.error_name == "io.balena.Agent1.Error.NoSuchService"
    assert caught.value.words == "no such service: web"


@pytest.mark.parametrize("member", ["Defect", "Misfit"])
def test_a_defect_never_shows_its_words(
    service: Bus, client: Bus, member: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BusRefusal) as caught:
        client.call(NAME, PATH, FACE, member)
    assert caught.value.error_name == "org.freedesktop.DBus.Error.Failed"
    assert caught.value.words == "internal error; the agent's journal has the details"
    assert [record.name for record in caplog.records] == ["balena_agent.host.bus"]
    assert caplog.records[0].exc_info


def test_a_body_that_does_not_fit_is_our_own_defect(client: Bus) -> None:
    with pytest.raises(Broken):
        client.call(NAME, PATH, FACE, "Echo", "u", ["not a number"])
    with pytest.raises(Broken):
        client.call("not a name", PATH, FACE, "Echo")
    client.probe()


def test_every_caller_is_known_by_its_own_name(daemon: Daemon, service: Bus) -> None:
    clients = [Bus(daemon.address) for _ in range(4)]
    for client in clients:
        client.start()

    def ask(number: int) -> tuple[object, object]:
        client = clients[number % 4]
        return client.unique_name, client.call(NAME, PATH, FACE, "Who")[0]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(64)))
    for client in clients:
        client.close()
    assert len({mine for mine, _ in answers}) == 4
    assert all(mine == told for mine, told in answers)


def test_nul_and_lone_surrogates_do_not_cost_the_connection(service: Bus, client: Bus) -> None:
    dirty = {"a\0b": Variant("s", "c\0\ud800d"), "list": Variant("as", ["\0", "ü"])}
    (back,) = client.call(NAME, PATH, FACE, "Echo", "a{sv}", [dirty])
    assert back["ab"].value == "c?d"
    assert back["list"].value == ["", "ü"]
    client.probe()


def test_tuples_are_structs(service: Bus, client: Bus) -> None:
    assert plain(client.call(NAME, PATH, FACE, "Echo", "a(su)", [[("a", 1)]])) == [[["a", 1]]]


def test_the_interactive_flag_arrives(service: Bus, client: Bus) -> None:
    assert client.call(NAME, PATH, FACE, "Interactive", interactive=True) == [True]
    assert client.call(NAME, PATH, FACE, "Interactive") == [False]


def test_a_taken_name_says_who_has_it(service: Bus, client: Bus) -> None:
    with pytest.raises(BusRefusal, match=rf"test\.Service is taken by process {os.getpid()}"):
        client.request_name(NAME)


def test_a_forbidden_name_says_so(client: Bus) -> None:
    with pytest.raises(BusRefusal, match="AccessDenied"):
        client.request_name("test.Forbidden")


def test_signals_reach_those_who_asked(service: Bus, client: Bus) -> None:
    seen: list[Signal] = []
    client.subscribe(Match(sender=NAME, interface=FACE, member="Wanted"), seen.append)
    service.post(service.emit, PATH, FACE, "Unwanted", "s", ["no"])
    service.post(service.emit, PATH, FACE, "Wanted", "s", ["yes"])
    eventually(lambda: seen, "the signal")
    assert [(s.path, s.member, s.body) for s in seen] == [(PATH, "Wanted", ["yes"])]


def test_a_forged_signal_is_dropped(daemon: Daemon, service: Bus, client: Bus) -> None:
    """The bus delivers it, because any process may send a signal to anybody."""
    seen: list[str] = []
    client.subscribe(Match(sender=NAME, member="Wanted"), lambda signal: seen.append(signal.sender))
    client.subscribe(Match(member="Wanted"), lambda signal: seen.append("any sender"))
    forger = Bus(daemon.address)
    forger.start()
    forger.post(forger.emit, PATH, FACE, "Wanted")
    eventually(lambda: seen, "the forged signal for the one who takes it from anybody")
    forger.close()
    assert seen == ["any sender"]


def test_a_service_that_comes_later_is_heard(daemon: Daemon, client: Bus) -> None:
    seen: list[Signal] = []
    client.subscribe(Match(sender="test.Late", member="Hello"), seen.append)
    late = Bus(daemon.address)
    late.start()
    late.request_name("test.Late")
    late.post(late.emit, PATH, FACE, "Hello")
    eventually(lambda: seen, "the signal of the late service")
    late.close()


def test_a_subscriber_that_fails_harms_nobody(service: Bus, client: Bus) -> None:
    def fail(signal: Signal) -> None:
        raise RuntimeError("careless")

    seen: list[Signal] = []
    client.subscribe(Match(sender=NAME), fail)
    client.subscribe(Match(sender=NAME), seen.append)
    service.post(service.emit, PATH, FACE, "Wanted")
    eventually(lambda: seen, "the signal for the second subscriber")


def test_loss_of_the_bus_is_told_once_and_nothing_hangs(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    reasons: list[str] = []
    lost = threading.Event()

    def on_lost(reason: str) -> None:
        reasons.append(reason)
        lost.set()

    bus = Bus(daemon.address, on_lost)
    bus.start()
    bus.serve(answer)
    bus.request_name(NAME)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(bus.call, NAME, PATH, FACE, "Never", timeout=20)
        bus.probe()
        daemon.kill()
        with pytest.raises(BusUnavailable):
            pending.result(10)
    assert lost.wait(10)
    assert bus.lost
    with pytest.raises(BusUnavailable):
        bus.call(NAME, PATH, FACE, "Echo")
    with pytest.raises(BusUnavailable):
        bus.probe()
    bus.post(bus.emit, PATH, FACE, "Nothing")
    bus.close()
    gc.collect()  # unread exceptions of the library would be complained about here
    assert len(reasons) == 1
    assert not caplog.records


def test_H57_a_silent_bus_is_no_failure_of_ours(
    daemon: Daemon, client: Bus, service: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    """The probe says so instead of failing; a bus thread that is stuck itself does fail it."""
    assert client.probe() == "ping came back"
    daemon.freeze(True)
    try:
        assert client.probe(0.2) == "the bus is silent" == client.probe(0.2)
        with pytest.raises(DeadlineExceeded):
            client.call(NAME, PATH, FACE, "Echo", timeout=0.2)
        assert not client.lost
    finally:
        daemon.freeze(False)
    assert client.probe() == "ping came back"
    assert [record.message for record in caplog.records] == [
        "The system bus is silent", "The system bus answers again",
    ]  # fmt: skip
    released = threading.Event()
    client.post(released.wait, 10)
    with pytest.raises(DeadlineExceeded):
        client.probe(0.2)
    released.set()
    assert client.probe() == "ping came back"


def test_a_bus_that_is_too_busy_to_take_more_is_not_lost(
    daemon: Daemon, client: Bus, service: Bus
) -> None:
    """As on a slow device when the states of many services change at once."""
    seen: list[Signal] = []
    client.subscribe(Match(member="Changed"), seen.append)
    client.probe()
    daemon.freeze(True)
    try:
        for number in range(2000):
            service.post(service.emit, PATH, FACE, "Changed", "us", (number, "x" * 1000))
        assert service.probe(0.5) == "the bus is silent"
    finally:
        daemon.freeze(False)
    eventually(lambda: len(seen) == 2000, "all signals")
    assert [signal.body[0] for signal in seen] == list(range(2000))
    assert service.probe() == "ping came back" and not service.lost


def test_a_bus_that_never_takes_more_is_lost_in_the_end(daemon: Daemon) -> None:
    lost: list[str] = []
    bus = Bus(daemon.address, lost.append)
    bus.start()
    daemon.freeze(True)
    try:
        for _ in range(300):
            bus.post(bus.emit, PATH, FACE, "Changed", "s", ("x" * 100_000,))
        eventually(lambda: lost, "the loss")
    finally:
        daemon.freeze(False)
    bus.close()
    assert "left more than 8 MiB unread" in lost[0] and len(lost) == 1


def test_closing_is_not_a_loss_and_flushes(daemon: Daemon, client: Bus) -> None:
    lost: list[str] = []
    seen: list[Signal] = []
    client.subscribe(Match(member="Last"), seen.append)
    bus = Bus(daemon.address, lost.append)
    bus.start()
    bus.post(bus.emit, PATH, FACE, "Last")
    bus.close()
    eventually(lambda: seen, "the last signal")
    assert not lost
    with pytest.raises(BusUnavailable):
        bus.call(NAME, PATH, FACE, "Echo")


def test_without_a_bus_the_start_fails_clearly(tmp_path: Path) -> None:
    bus = Bus(f"unix:path={tmp_path}/nothing")
    with pytest.raises(BusUnavailable, match="cannot reach the system bus"):
        bus.start()
    bus.close()


def test_the_bus_thread_may_not_wait_for_itself(client: Bus) -> None:
    async def wrong() -> None:
        client.call(NAME, PATH, FACE, "Echo")

    with pytest.raises(Broken, match="must not wait for itself"):
        client.run(wrong(), 5)


def test_machine_id_and_ping_work_on_any_path(service: Bus, client: Bus) -> None:
    peer = "org.freedesktop.DBus.Peer"
    assert client.call(NAME, "/", peer, "Ping") == []
    if Path("/etc/machine-id").exists():
        (machine,) = client.call(NAME, PATH, peer, "GetMachineId")
        assert machine == Path("/etc/machine-id").read_text().strip()


def test_the_connection_for_descriptors_is_a_second_one(service: Bus, client: Bus) -> None:
    first = client.call(NAME, PATH, FACE, "Who")
    second = client.call(NAME, PATH, FACE, "Who", with_fds=True)
    assert first != second
    assert client.call(NAME, PATH, FACE, "Who", with_fds=True) == second


def test_a_python_without_the_decorator_that_the_library_imports_will_do() -> None:
    """Python 3.15 has removed it."""
    program = (
        "import typing; vars(typing).pop('no_type_check_decorator', None)\n"
        "import balena_agent.host.bus"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)


# -- file descriptors ------------------------------------------------------------------------------


class Giver:
    """A service that hands out descriptors, as logind does, on a connection of its own."""

    def __init__(self, bus: Bus, address: str) -> None:
        self.asked: list[Any] = []
        self.reader, self.writer = os.pipe()
        self.connection = bus.run(Connection.open(address, self._received, with_fds=True), 5)
        self._bus = bus

    def _received(self, message: Any) -> None:
        if message.message_type is MessageType.METHOD_CALL:
            self.asked.append(message)
            if message.member == "Give":
                self.give(message)

    def give(self, message: Any) -> None:
        own = os.dup(self.writer)  # what is sent is closed when it is written
        self.connection.send(Message.new_method_return(message, "h", [0], [own]))

    def abandoned(self) -> bool:
        """Whether nobody but us has the writing end any more: the pipe is at its end."""
        os.close(self.writer)
        return os.read(self.reader, 1) == b""


@pytest.fixture
def giver(daemon: Daemon, service: Bus) -> Giver:
    return Giver(service, daemon.address)


def test_a_descriptor_belongs_to_the_caller_and_to_no_child(giver: Giver, client: Bus) -> None:
    (fd,) = client.call(giver.connection.unique_name, PATH, FACE, "Give", with_fds=True)
    assert not os.get_inheritable(fd)
    assert os.write(fd, b"x") == 1 and os.read(giver.reader, 1) == b"x"
    os.close(fd)
    assert giver.abandoned()


def test_a_descriptor_that_comes_too_late_is_closed(giver: Giver, client: Bus) -> None:
    """Else a logind lock that nobody knows of would delay every shutdown."""
    name = giver.connection.unique_name
    with pytest.raises(DeadlineExceeded):
        client.call(name, PATH, FACE, "Late", timeout=0.1, with_fds=True)
    eventually(lambda: giver.asked, "the call at the service")
    giver._bus.post(giver.give, giver.asked[0])
    (fd,) = client.call(name, PATH, FACE, "Give", with_fds=True)  # what came before is handled
    os.close(fd)
    assert giver.abandoned()


def test_descriptors_that_nobody_asked_for_do_not_pile_up(
    daemon: Daemon, giver: Giver, client: Bus
) -> None:
    (fd,) = client.call(giver.connection.unique_name, PATH, FACE, "Give", with_fds=True)
    os.close(fd)
    stranger = giver.asked[0].sender
    for _ in range(20):
        call = Message(
            destination=stranger, path=PATH, interface=FACE, member="Take", signature="h",
            body=[0], unix_fds=[os.dup(giver.writer)], flags=MessageFlag.NO_REPLY_EXPECTED,
            serial=7,
        )  # fmt: skip
        giver._bus.post(giver.connection.send, call)
    giver._bus.probe()
    (fd,) = client.call(giver.connection.unique_name, PATH, FACE, "Give", with_fds=True)
    os.close(fd)
    assert giver.abandoned()


def open_pipes() -> int:
    links = (os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return sum(link.startswith("pipe:") for link in links)


def test_an_answer_may_carry_a_descriptor_that_is_the_callers_alone(
    service: Bus, client: Bus
) -> None:
    client.call(NAME, PATH, FACE, "Who", with_fds=True)
    before = open_pipes()
    for _ in range(20):
        text, fd = client.call(NAME, PATH, FACE, "Pipe", with_fds=True)
        assert text == "a pipe" and os.read(fd, 100) == b"hello"
        os.close(fd)
    client.probe()
    service.probe()
    assert open_pipes() == before


def test_descriptors_in_calls_to_us_do_not_pile_up(service: Bus, giver: Giver, client: Bus) -> None:
    for _ in range(20):
        call = Message(
            destination=NAME, path=PATH, interface=FACE, member="Missing", signature="h",
            body=[0], unix_fds=[os.dup(giver.writer)], flags=MessageFlag.NO_REPLY_EXPECTED,
            serial=7,
        )  # fmt: skip
        giver._bus.post(giver.connection.send, call)
    (fd,) = client.call(giver.connection.unique_name, PATH, FACE, "Give", with_fds=True)
    os.close(fd)
    with pytest.raises(BusRefusal):
        client.call(NAME, PATH, FACE, "Missing")  # what came before is handled
    assert giver.abandoned()
