"""The running agent against its own description: generated requests, described answers.

Schemathesis makes requests from the schemas, good ones and such that break them, and compares each
answer with what is described: status, content type, body. What would end the device or never ends
is left out; of the journal only a few lines are asked for. That a server answers 503 is part of
this API, so that alone is no fault. It takes about a minute; after `LIMIT` every operation that is
left is asked once only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_device import Device
from e2e_targets import pair

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402 - comes with it
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis.core.failures import FailureGroup  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

LEFT_OUT = {
    "reboot": "ends the device",
    "shutdown": "ends the device",
    "regenerateApiKey": "takes the key away that the other requests need",
    "localLogs": "has no end",
}
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
LIMIT = 240.0
"""Seconds for the requests of one test."""

EXAMPLES = int(os.environ.get("BALENA_AGENT_FUZZ_EXAMPLES", "40"))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation["operationId"] not in LEFT_OUT:
                yield method.upper(), path, operation["operationId"]


MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


def test_answers_are_as_described(device: Device) -> None:
    device.apply(pair())
    document = device.api("GET", "/v2/openapi.json").json()
    faults = _faults(device, document, [name for *_, name in operations(document)])
    assert faults == [], "\n".join(faults)
    assert device.api("GET", "/ping").status == 200
    assert "Traceback" not in device.said()
    device.apply(pair(), force=True)


def test_a_false_description_is_noticed(device: Device) -> None:
    document = device.api("GET", "/v2/openapi.json").json()
    answers = document["paths"]["/v2/version"]["get"]["responses"]
    answers["200"]["content"]["application/json"]["schema"]["properties"]["version"] = {"const": 5}
    faults = _faults(device, document, ["version"])
    assert faults and all(fault.startswith("version: ") for fault in faults)


def _faults(device: Device, document: dict[str, Any], names: list[str]) -> list[str]:
    schema = schemathesis.openapi.from_dict(document)
    headers = {"Authorization": f"Bearer {device.machine.api_key}"}
    base = f"http://{device.machine.address}:48484"
    until = time.monotonic() + LIMIT
    found = [
        _run(schema[path][method].as_strategy(generation_mode=mode), name, base, headers, until)
        for method, path, name in operations(document)
        if name in names
        for mode in MODES
    ]
    return [fault for fault in found if fault]


def _brief(body: Any) -> Any:
    """What asks for the journal, but without an end or at full length."""
    kept = {k: v for k, v in body.items() if k != "follow"} if isinstance(body, dict) else {}
    return {"count": 3, **kept}


def _run(strategy: Any, name: str, base: str, headers: dict[str, str], until: float) -> str:
    """Ask with many requests, or only one if it is late; the first fault in words, "" if there is
    none."""
    asked = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def ask(case: Any) -> None:
        nonlocal asked
        if asked and time.monotonic() > until:
            return
        asked += 1
        if name == "journalLogs":
            case.body = _brief(case.body)
        response = case.call(base_url=base, headers=headers, timeout=60)
        case.validate_response(response, checks=CHECKS)

    try:
        ask()
    except Unsatisfiable:
        return ""  # a request without any parts cannot be a wrong one
    except FailureGroup as faults:
        return f"{name}: " + "; ".join(str(fault) for fault in faults.exceptions)[:1500]
    except Exception as error:
        return f"{name}: {error}"[:1500]
    return ""
