"""The endpoints about device, keys, single apps and our own ones, where the cases leave them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import device_states
import pytest
from test_http_api import KEYS, Reconciler, device

from balena_agent.api.around import Around
from balena_agent.core.errors import Locked, NotFound
from balena_agent.core.intent import StartService, StopService
from balena_agent.core.metrics import Metric, text_of
from balena_agent.core.plan import Plan, Wait

MAIN = (f"{1011:032x}", "main")


def test_an_update_is_asked_for_with_its_flags() -> None:
    asked: list[tuple[bool, bool]] = []
    here = device(device_states.m1(), around=Around(refresh=lambda *f: asked.append(f)))
    assert here.ask("POST", "/v1/update").status == 204
    assert here.ask("POST", "/v1/update", {"force": 1, "cancel": "true"}, "A").status == 204
    assert here.ask("POST", "/v1/update", {"force": "yes", "cancel": "no"}).status == 204
    assert asked == [(False, False), (True, True), (False, False)]


def test_a_key_is_replaced_by_its_owner(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    asked: list[str] = []

    def rotate(key: str) -> str:
        asked.append(key)
        if key not in KEYS.values():
            raise NotFound("No such key")
        return "e" * 32

    here = device(device_states.m1(), around=Around(rotate=rotate))
    reply = here.ask("POST", "/v1/regenerate-api-key", key="A")
    assert (reply.status, reply.text) == (200, "e" * 32)
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    open_ = device(device_states.unmanaged(), around=Around(rotate=rotate))
    refused = open_.ask("POST", "/v1/regenerate-api-key", key=None)
    assert refused.status == 503 and "valid API key" in refused.json["message"]
    assert open_.ask("POST", "/v1/regenerate-api-key", key="G").status == 200
    assert asked == [KEYS["A"], "", KEYS["G"]]
    assert "e" * 32 not in caplog.text and KEYS["A"] not in caplog.text


class Host:
    """A host that notes what it is asked for."""

    def __init__(self) -> None:
        self.patched: list[tuple[dict[str, Any], bool]] = []

    def read(self) -> dict[str, Any]:
        return {"network": {"hostname": "lab"}}

    def patch(self, network: Mapping[str, Any], force: bool) -> None:
        if not force and network:
            raise Locked("Updates are locked: lockfile exists for { appId: 1011 }")
        self.patched.append((dict(network), force))


def test_the_host_is_configured() -> None:
    host = Host()
    here = device(device_states.m1(), around=Around(host_config=host))
    path, name = "/v1/device/host-config", {"hostname": "x"}
    locked = here.ask("PATCH", path, {"network": name})
    assert locked.status == 423 and re.fullmatch(r"[A-Za-z0-9\s:'.?!,/-]*", locked.text)
    assert locked.headers["Content-Type"] == "text/html; charset=utf-8"
    for body in ({"network": name, "force": True}, {"network": {**name, "force": "1"}}):
        assert here.ask("PATCH", path, body).text == "OK"
    assert host.patched == [(name, True), (name, True)]
    for body in ({}, {"network": None}, {"network": "x"}, {"network": []}):
        assert here.ask("PATCH", path, body).status == 400


def test_a_single_app_is_stopped_and_started() -> None:
    here = device(device_states.m1())
    (live,) = here.published.current.observed.containers.values()
    reply = here.ask("POST", "/v1/apps/1011/start", {}, "A")
    assert reply.json == {"containerId": live.id}
    assert here.ask("POST", "/v1/apps/1011/stop", {"force": 1}, "A").json["containerId"] == live.id
    assert here.reconciler.seen == [StartService(MAIN), StopService(MAIN, True)]


def test_a_start_tells_the_new_container() -> None:
    """The old one is gone by the time that the start is met."""
    now = device_states.m1()
    (old,) = now.observed.containers.values()
    stopped = replace(now.observed, containers={old.id: replace(old, state="exited")})
    here = device(replace(now, observed=stopped))
    fresh = replace(old, id="f" * 64, created_at="2026-04-01T10:00:00.1Z")

    def submit_and_publish(command: Any) -> None:
        after = replace(now.observed, containers={fresh.id: fresh})
        here.published.publish(replace(now, observed=after))

    here.reconciler.refuse = submit_and_publish  # type: ignore[assignment]
    assert here.ask("POST", "/v1/apps/1011/start", {}).json == {"containerId": "f" * 64}


def test_a_single_app_is_shown_without_its_keys() -> None:
    now = device_states.m1()
    (live,) = now.observed.containers.values()
    names = ("BALENA_API_KEY", "RESIN_API_KEY", "BALENA_SUPERVISOR_API_KEY",
             "RESIN_SUPERVISOR_API_KEY")  # fmt: skip
    spec = replace(live.spec, fields={"Env": {"A": "1", **dict.fromkeys(names, "secret")}})
    shown = replace(now.observed, containers={live.id: replace(live, spec=spec)})
    reply = device(replace(now, observed=shown)).ask("GET", "/v1/apps/1011")
    assert reply.json["env"] == {"A": "1"}


def test_the_device_while_an_update_is_applied() -> None:
    now = replace(device_states.m1(), update_pending=True, update_failed=True)
    around = Around(addresses=lambda: ("192.168.1.5", "2001:db8::5"), macs=lambda: ("AA:BB",))
    shown = device(now, around=around).ask("GET", "/v1/device").json
    assert "commit" not in shown
    assert (shown["update_pending"], shown["update_failed"]) == (True, True)
    assert (shown["ip_address"], shown["mac_address"]) == ("192.168.1.5 2001:db8::5", "AA:BB")


def test_two_containers_of_an_image_hand_over() -> None:
    now = device_states.m1()
    (live,) = now.observed.containers.values()
    twin = replace(live, id="9" * 64)
    both = replace(now.observed, containers={live.id: live, twin.id: twin})
    shown = device(replace(now, observed=both)).ask("GET", "/v2/applications/1011/state").json
    assert shown["local"]["1011"]["services"]["21"]["status"] == "Handing over"


# -- ours


LAN, HOST = "::ffff:192.168.1.20", "::ffff:127.0.0.1"
OWN, BRIDGE = "::ffff:192.168.1.5", "::ffff:10.114.104.9"


@pytest.mark.parametrize(
    ("address", "key", "status"),
    [
        (LAN, None, 401), (LAN, "bad", 401), (LAN, "A", 200), (HOST, None, 200), (HOST, "bad", 200),
        (OWN, None, 200), (BRIDGE, None, 401),
    ],
)  # fmt: skip
def test_who_may_see_the_metrics(address: str, key: str | None, status: int) -> None:
    here = device(device_states.m1())
    assert here.ask("GET", "/metrics", key=key, address=address).status == status
    assert here.ask("GET", "/v2/version", key=None, address=address).status == 401


def metrics(snapshot: Any, key: str = "G") -> dict[str, str]:
    reply = device(snapshot, around=Around(version="1.2.3")).ask("GET", "/metrics", key=key)
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in reply.text.splitlines() if not line.startswith("#")]
    return dict(line.rsplit(" ", 1) for line in lines)


def test_metrics_of_agent_and_services() -> None:
    now = replace(device_states.m2(), plan=Plan((), (Wait("image x", "waits"),)))
    found = metrics(now)
    main = 'app_id="1011",app="fleet1",service="main"'
    assert found[f"balena_service_running{{{main}}}"] == "1"
    assert found[f'balena_service_status{{{main},status="Running"}}'] == "1"
    assert found["balena_agent_waits"] == "1"
    assert found["balena_agent_update_pending"] == "1"
    assert found['balena_agent_info{version="1.2.3",compat_version="19.0.5"}'] == "1"
    assert int(found["process_resident_memory_bytes"]) > 1_000_000
    assert float(found["process_cpu_seconds_total"]) > 0
    other = metrics(now, "B")
    assert not [name for name in other if "fleet1" in name]
    assert [name for name in other if 'service="solo"' in name]


def test_metrics_without_the_engine() -> None:
    found = metrics(replace(device_states.m1(), engine_error="down"))
    assert found["balena_agent_engine_up"] == "0"


def test_labels_are_escaped_and_empty_metrics_left_out() -> None:
    odd = Metric("x", "gauge", "Text.", (({"app": 'a"b\\c\nd'}, 1.5),))
    text = text_of((odd, Metric("y", "gauge", "None.", ())))
    assert text == '# HELP x Text.\n# TYPE x gauge\nx{app="a\\"b\\\\c\\nd"} 1.5\n'


def test_numbers_of_many_digits_are_no_numbers() -> None:
    here = device(device_states.m1(), Reconciler())
    assert here.ask("GET", f"/v1/apps/{'9' * 5000}").status == 400
    body = {"imageId": "9" * 5000}
    assert here.ask("POST", "/v2/applications/1011/start-service", body).status == 400
