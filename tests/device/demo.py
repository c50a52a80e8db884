"""The main job on real input: a fresh device, two preloaded services, watched until they run.

`web` serves a page on a published port, `worker` writes a line every two seconds. Nothing is faked:
the agent reads apps.json as it does on a device that left the factory with it.
"""

from __future__ import annotations

import time
from typing import Any

from . import client, images
from .machine import Machine
from .outer import DeviceError, say

NAME = "demo"
PORT = 8080
PAGE = "<h1>Hello from a virtual device</h1>\n"
APP = "0123456789abcdef0123456789abcdef"
COMMIT = "d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0"
WEB = ("/bin/sh", "-c", "trap 'exit 0' TERM; httpd -f -p 80 -h /www & wait $!")
WORKER = (
    "/bin/sh", "-c",
    "trap 'exit 0' TERM; n=0; while :; do n=$((n+1)); echo \"work item $n done\";"
    " sleep 2 & wait $!; done",
)  # fmt: skip


def apps_json(web: str, worker: str) -> dict[str, Any]:
    """A preload file (apps.json v3) with one app, one release and two services."""
    services = {
        "web": {
            "id": 1, "image_id": 1, "image": web, "running": True, "environment": {},
            "labels": {}, "composition": {"ports": [f"{PORT}:80"], "restart": "always"},
        },
        "worker": {
            "id": 2, "image_id": 2, "image": worker, "running": True,
            "environment": {"GREETING": "hello"}, "labels": {},
            "composition": {"restart": "always", "depends_on": ["web"]},
        },
    }  # fmt: skip
    release = {"id": 1, "services": services, "volumes": {}, "networks": {}}
    app = {"id": 1, "name": NAME, "class": "fleet", "releases": {COMMIT: release}}
    return {"config": {}, "apps": {APP: app}, "pinDevice": False}


def run_demo(seconds: float = 60.0) -> dict[str, Any]:
    """Run the demo; the device's facts. A DeviceError with evidence if the services do not run."""
    machine = Machine(NAME)
    machine.down()
    say("booting a fresh device")
    machine.up(agent=False)
    say("building two images from busybox and preloading them into its engine")
    web = images.build(machine, "demo-web:1", cmd=WEB, files={"/www/index.html": PAGE})
    worker = images.build(machine, "demo-worker:1", cmd=WORKER)
    say("installing the agent with an apps.json that names them")
    facts = machine.up(agent=True, apps=apps_json(web.reference, worker.reference))
    say("the agent answers; watching its API")
    _watch(machine, seconds)
    _show(machine)
    return facts


def _watch(machine: Machine, seconds: float) -> None:
    """Print each change of each service as the agent reports it, until both run."""
    started = time.monotonic()
    seen: dict[str, str] = {}

    def both_run() -> bool:
        for line, value in _lines(machine).items():
            if seen.get(line) != value:
                seen[line] = value
                print(f"{time.monotonic() - started:6.1f} s  {line:<8} {value}", flush=True)
        return all(seen.get(name, "").startswith("Running") for name in ("web", "worker"))

    unit = "balena-agent.service"
    machine.wait_until(both_run, seconds, "web and worker run", unit=unit, pause=0.1)


def _lines(machine: Machine) -> dict[str, str]:
    """Service (or app) -> its state in words, from GET /v2/applications/state."""
    # Over loopback: a device need not serve its API to the network.
    try:
        answer = machine.api("GET", "/v2/applications/state", inside=True)
    except DeviceError as error:
        return {"api": str(error)}
    if answer.status != 200:
        return {"api": f"HTTP {answer.status}: {answer.text.strip()[:200]}"}
    lines = {}
    for app, state in answer.json().items():
        lines[f"{app}"] = str(state.get("updateStatus"))
        for name, service in state.get("services", {}).items():
            percent = service.get("downloadProgress")
            extra = f" {percent}%" if percent is not None else ""
            lines[name] = f"{service.get('status')}{extra}"
    return lines


def _show(machine: Machine) -> None:
    status = machine.exec("balena-agentctl", "status", check=False)
    print(f"\n$ balena-agentctl status\n{(status.stdout + status.stderr).rstrip()}\n")
    page = machine.wait_until(lambda: _page(machine), 10.0, "the web page")
    print(f"$ curl http://{machine.address}:{PORT}/\n{page}")
    if page != PAGE:
        raise DeviceError("that is not the page that was put into the image")
    api = f"http://{machine.address}:48484"
    vdev = "sudo tests/vdev"
    print(f"""The device stays on. Try:
  HTTP     curl -H 'Authorization: Bearer {machine.api_key}' {api}/v2/state/status
  D-Bus    {vdev} exec {NAME} -- busctl introspect io.balena.Agent1 /io/balena/Agent1
  command  {vdev} exec {NAME} -- balena-agentctl monitor
  journal  {vdev} logs {NAME} -f
  shell    {vdev} shell {NAME}
  remove   {vdev} down {NAME}
""", flush=True)  # fmt: skip


def _page(machine: Machine) -> str:
    try:
        return client.request("GET", "/", host=machine.address, port=PORT, timeout=2.0).text
    except DeviceError:
        return ""
