"""The link as a whole: with a runtime on one side and the small cloud of the tests on the other."""

from __future__ import annotations

import gzip
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import device_states
import pytest
from agent import Rig, rig
from cloud import FakeCloud
from waiting import until

from balena_agent.cloud import client
from balena_agent.cloud.link import CloudLink
from balena_agent.cloud.probe import Probe, answers
from balena_agent.core.cloudanswer import CloudStatus
from balena_agent.core.describe import describe, status_line
from balena_agent.core.errors import InvalidInput, Unavailable
from balena_agent.core.intent import Apply, NoteCloud
from balena_agent.core.observed import HostFacts
from balena_agent.core.snapshot import Snapshot
from balena_agent.core.status import cloud_state
from balena_agent.runtime.state import Published
from balena_agent.watchdog import Watchdog

UUID, KEY = "d0" * 16, "the-key-of-the-device"
APP = "a1" * 16


class Settings(dict[str, Any]):
    setting = dict.get
    set_setting = dict.__setitem__


def target(commit: str = "c1", **config: str) -> dict[str, Any]:
    main = {"id": 1, "image_id": 2, "image": "busybox", "environment": {}, "labels": {}}
    release = {"id": 5, "services": {"main": main}}
    app = {"id": 7, "name": "fleet", "class": "fleet", "releases": {commit: release}}
    return {UUID: {"name": "lab", "config": config, "apps": {APP: app}}}


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with FakeCloud(keys={UUID: KEY}, targets={UUID: target()}) as made:
        yield made


def facts(endpoint: str, registered: bool = True) -> HostFacts:
    return HostFacts(
        device_uuid=UUID, api_endpoint=endpoint, device_api_key=KEY, registered=registered
    )


@contextmanager
def linked(cloud: FakeCloud, registered: bool = True) -> Iterator[tuple[Rig, CloudLink]]:
    """A whole device."""
    with rig(facts=facts(cloud.url, registered)) as device:
        link = CloudLink(
            device.published, device.reconciler.submit, Settings(), device.watchdog, "0.1",
            lambda: ("192.0.2.1",), lambda: (), lambda: "s3cret",
        )  # fmt: skip
        link.start()
        device.reconciler.new_facts(device.published.current.facts)
        try:
            yield device, link
        finally:
            link.stop()


def test_the_target_comes_in_and_reports_go_out(cloud: FakeCloud) -> None:
    with linked(cloud) as (device, link):
        device.until(lambda s: device.containers() == {"main": "running"})
        assert device.published.current.source == cloud.url
        until(lambda: cloud.told.get(UUID, {}).get("api_secret") == "s3cret")
        device.until(lambda s: cloud_state(s) == "online")
        assert link.healthy()
        cloud.targets[UUID] = target("c2")
        link.poll_now(force=False, cancel=False)
        device.until(lambda s: bool(s.target and s.target.apps[APP].release.commit == "c2"))  # type: ignore[union-attr]
        assert cloud.asked("GET", ".*")[0].headers["accept-encoding"] == "gzip"
        assert not device.watchdog.stuck()


def test_nothing_is_asked_before_the_device_is_registered(cloud: FakeCloud) -> None:
    with linked(cloud, registered=False) as (device, link):
        device.until(lambda s: s.looked)
        assert cloud_state(device.published.current) == "provisioning" and link.healthy()
        assert not cloud.requests
        device.reconciler.new_facts(facts(cloud.url))
        device.until(lambda s: device.containers() == {"main": "running"})


def test_without_a_cloud_an_update_applies_what_there_is() -> None:
    seen: list[object] = []
    published = Published(device_states.m1())
    link = CloudLink(published, seen.append, Settings(), Watchdog(lambda s: None), "0.1")  # type: ignore[arg-type]
    link.start()
    published.publish(published.current)
    link.poll_now(force=True, cancel=False)
    link.report_now()
    link.stop()
    assert seen == [Apply(True, False)]


def test_a_cloud_that_is_lost_is_shown_and_comes_back(
    cloud: FakeCloud, caplog: pytest.LogCaptureFixture
) -> None:
    with linked(cloud) as (device, link):
        device.until(lambda s: cloud_state(s) == "online")
        cloud.keys.clear()
        link.poll_now(False, False)
        device.until(lambda s: cloud_state(s) == "refused")
        now = device.published.current
        assert "; cloud: the cloud refuses the device's key (status 401)" in status_line(now)
        assert describe(now, "0.1")["cloud"]["state"] == "refused"
        cloud.keys[UUID] = KEY
        link.poll_now(False, False)
        device.until(lambda s: cloud_state(s) == "online")
        assert "cloud:" not in status_line(device.published.current)
        assert KEY not in caplog.text and "s3cret" not in caplog.text


def health(knock: Callable[[str], bool], **config: str) -> CloudLink:
    snapshot = device_states.m1()
    assert snapshot.target
    now = replace(
        snapshot,
        facts=replace(snapshot.facts, registered=True),
        target=replace(snapshot.target, config=config),
    )
    watchdog = Watchdog(lambda state: None)
    submit: Any = lambda command: None  # noqa: E731
    return CloudLink(Published(now), submit, Settings(), watchdog, "0.1", probe=Probe(knock))


def test_A61_health_is_whether_the_cloud_can_be_reached() -> None:
    assert health(lambda endpoint: endpoint == "https://api.example.com").healthy()
    assert not health(lambda endpoint: False).healthy()
    assert health(lambda endpoint: False, SUPERVISOR_CONNECTIVITY_CHECK="false").healthy()


def test_A61_a_cloud_that_has_not_answered_for_two_intervals_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = health(lambda endpoint: True, SUPERVISOR_POLL_INTERVAL="600000")
    begun = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: begun + 1250)
    assert link.healthy(), "a poll comes up to a minute late"
    monkeypatch.setattr(time, "monotonic", lambda: begun + 1270)
    assert not link.healthy()


def test_A61_a_device_that_is_registered_late_is_not_unhealthy_before_its_first_poll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = Published(Snapshot(facts=facts("http://cloud.test", registered=False)))
    submit: Any = lambda command: None  # noqa: E731
    hold = threading.Event()

    def silent(*_: Any) -> client.Reply:
        hold.wait(10)
        raise Unavailable("nobody")

    link = CloudLink(
        published, submit, Settings(), Watchdog(lambda state: None), "0.1",
        exchange=silent, probe=Probe(lambda endpoint: True),
    )  # fmt: skip
    link.start()
    begun = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: begun + 10_000)
    published.publish(Snapshot(facts=facts("http://cloud.test"), version=1))
    try:
        assert link.healthy()
    finally:
        link.stop()
        hold.set()


def test_a_probe_is_shared_fresh_and_never_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    knocks: list[str] = []
    probe = Probe(lambda endpoint: knocks.append(endpoint) is None)
    assert probe.connected("http://a") and probe.connected("http://a") and knocks == ["http://a"]
    assert probe.connected("http://b") and len(knocks) == 2, "another endpoint is another question"
    begun = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: begun + 11)
    assert probe.connected("http://b") and len(knocks) == 3, "the last one is too old"
    lost = Probe(lambda endpoint: knocks.append(endpoint) is not None)
    assert not lost.connected("http://c") and len(knocks) == 4
    monkeypatch.setattr(time, "monotonic", lambda: begun + 13)
    assert not lost.connected("http://c") and len(knocks) == 5, "what is lost is soon found again"
    stuck, hold = threading.Event(), threading.Event()
    monkeypatch.setattr("balena_agent.cloud.probe.PATIENCE", 0.01)
    slow = Probe(lambda endpoint: stuck.set() is None and hold.wait(10))
    assert not slow.connected("http://a") and stuck.wait(10)
    hold.set()
    monkeypatch.setattr("balena_agent.cloud.probe.PATIENCE", 10.0)
    assert slow.connected("http://a"), "it was on its way"


def test_an_answer_that_grows_old_while_it_is_given_is_an_answer() -> None:
    class Aging(Probe):
        """Another one asks, of another endpoint, before the first is told."""

        def _begin(self, endpoint: str) -> Any:
            begun = super()._begin(endpoint)
            if endpoint == "http://a":
                assert begun.ended.wait(10)
                self._last = super()._begin("http://b")
            return begun

    assert Aging(lambda endpoint: True).connected("http://a")


def test_an_address_answers_when_somebody_listens(cloud: FakeCloud) -> None:
    assert answers(cloud.url)
    cloud.stop()
    assert not answers(cloud.url)
    for odd in ("", "nonsense", "http://host:port", "ftp://127.0.0.1", "http://"):
        assert not answers(odd)


def test_a_note_about_the_cloud_asks_for_nothing() -> None:
    with rig() as device:
        noted = CloudStatus("offline", "down")
        assert device.reconciler.submit(NoteCloud(noted)).result(10) == "accepted"
        assert device.published.current.cloud == noted
        assert not device.published.current.update_pending


def test_connectivity_that_comes_back_wakes_both_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balena_agent.core.polling.FIRST_RETRY", 900.0)
    monkeypatch.setattr("balena_agent.core.polling.RETURN_SPREAD", 0.0)
    methods: list[str] = []

    def lost(endpoint: str, key: str, method: str, *_: Any) -> client.Reply:
        methods.append(method)
        raise Unavailable("nobody")

    now = Snapshot(facts=replace(facts("http://cloud.test"), connectivity="limited"))
    published = Published(now)
    submit: Any = lambda command: None  # noqa: E731
    link = CloudLink(
        published, submit, Settings(), Watchdog(lambda state: None), "0.1", exchange=lost
    )
    link.start()
    published.publish(now)
    try:
        until(lambda: sorted(methods) == ["GET", "PATCH"])
        published.publish(replace(now, facts=replace(now.facts, connectivity="full")))
        until(lambda: sorted(methods) == ["GET", "GET", "PATCH", "PATCH"])
    finally:
        link.stop()


# -- the client


@pytest.mark.parametrize(("code", "kind"), [
    (9, client.CertificateOutOfTime), (10, client.CertificateOutOfTime), (18, Unavailable),
])  # fmt: skip
def test_C50_a_certificate_that_is_refused_for_its_dates_is_told_apart(
    cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Unavailable]
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        error = ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.verify_code = code
        raise error

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", refused)
    with pytest.raises(Unavailable) as caught:
        client.exchange(cloud.url.replace("http", "https"), KEY, "GET", "/")
    assert type(caught.value) is kind


def test_gzip_is_unpacked_up_to_a_limit(cloud: FakeCloud) -> None:
    cloud.targets[UUID] = {UUID: {"name": "x" * 100_000}}

    def get(largest: int) -> client.Reply:
        return client.exchange(
            cloud.url, KEY, "GET", f"/device/v3/{UUID}/state", None, 10.0,
            {"Accept-Encoding": "gzip"}, largest,
        )  # fmt: skip

    reply = get(1 << 20)
    assert json.loads(reply.body) == cloud.targets[UUID] and reply.headers["etag"]
    with pytest.raises(Unavailable, match="too long"):
        get(50_000)


def test_gzip_that_is_cut_short_is_no_answer() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = gzip.compress(b"{}" * 1000)[:-10]
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(Unavailable, match="ends in the middle"):
            client.exchange(url, KEY, "GET", "/")


@pytest.mark.parametrize("key", ["line\nbreak-s3cret", "\u20ac-s3cret"])
def test_odd_keys_are_refused_without_being_shown(cloud: FakeCloud, key: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        client.exchange(cloud.url, key, "GET", "/")
    assert "s3cret" not in str(caught.value) and caught.value.__cause__ is None


def test_a_cloud_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match="cannot be reached"):
            client.exchange(url, KEY, "GET", "/")


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server that sends another header every now and then, and never comes to an end."""
    ended = threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            for number in range(200):
                if ended.wait(0.02):
                    return
                connection.sendall(b"X-%d: y\r\n" % (number % 50))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        ended.set()
        thread.join(10)


def test_headers_that_drip_are_cut_off_at_the_deadline(dripping: str) -> None:
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="it took too long"):
        client.exchange(dripping, KEY, "GET", "/", limit=0.2)
    assert time.monotonic() - begun < 3.5


def test_no_address_is_tried_after_the_deadline(
    cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = socket.getaddrinfo

    def slow(*asked: Any, **more: Any) -> Any:
        threading.Event().wait(0.1)
        return find(*asked, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(Unavailable, match="it took too long"):
        client.exchange(cloud.url, KEY, "GET", "/ping", limit=0.05)
    assert not cloud.requests
    client.exchange(cloud.url, KEY, "GET", "/ping", limit=10.0)
    assert cloud.requests


def test_an_address_that_does_not_answer_is_followed_by_the_next(
    cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = (socket.AF_INET, socket.SOCK_STREAM, 0, "", taken.getsockname())
        find = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **m: [dead, *find(*a, **m)])
        client.exchange(cloud.url, KEY, "GET", "/ping")
        assert cloud.requests


def test_a_name_is_looked_up_as_the_host_says_and_stays_the_name(cloud: FakeCloud) -> None:
    """Spec 30 §14: of a `.local` name Avahi knows the address; the cloud still hears the name."""
    port = cloud.url.rpartition(":")[2]
    asked = []

    def lookup(name: str) -> str:
        asked.append(name)
        return "127.0.0.1"

    endpoint = f"http://my-cloud.local:{port}"
    client.exchange(endpoint, KEY, "GET", "/ping", lookup=lookup)
    with pytest.raises(client.RefusedByCloud):
        client.request(endpoint, KEY, "GET", "/none", lookup=lookup)
    assert answers(endpoint, lookup)
    assert asked == ["my-cloud.local"] * 3
    assert cloud.requests[-1].headers["host"] == f"my-cloud.local:{port}"


def test_the_agents_name_has_no_odd_characters() -> None:
    odd = HostFacts(os_name="OS\r\n\u20ac", os_variant="")
    assert client.user_agent(odd, "1") == "Supervisor/19.0.5 (Linux; OS???) balena-agent/1"


def test_C32_what_comes_right_after_a_look_is_not_missed(
    cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be told a minute later otherwise."""
    monkeypatch.setattr("balena_agent.core.polling.REPORT_PAUSE", 0.0)
    monkeypatch.setattr("balena_agent.cloud.report.SETTLE_SECONDS", 0.2)
    secret = ["first"]
    published = Published(Snapshot(facts=facts(cloud.url)))
    watchdog = Watchdog(lambda state: None)
    submit: Any = lambda command: None  # noqa: E731
    link = CloudLink(published, submit, Settings(), watchdog, "0.1", secret=lambda: secret[0])
    link.start()
    published.publish(published.current)
    for name in ("first", "second", "third"):
        secret[0] = name
        link.report_now()
        until(lambda name=name: cloud.told.get(UUID, {}).get("api_secret") == name)
    link.stop()
