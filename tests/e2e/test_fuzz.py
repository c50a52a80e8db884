"""The running agent against its own description: generated requests, described answers.

Schemathesis makes requests from the schemas, good ones and such that break them, and compares each
answer with what is described: status, content type, body. What would end the device or never ends
is left out. That a server answers 503 is part of this API, so that alone is no fault.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_device import Device
from e2e_targets import pair

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, Phase, settings  # noqa: E402 - there if schemathesis is
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

LEFT_OUT = (
    "reboot", "shutdown", "regenerateApiKey", "localLogs", "journalLogs",
    # served soon: tests/unit/test_openapi.py knows when
    "restart", "purge", "restartApplication", "purgeApplication", "cleanupVolumes",
)  # fmt: skip
EXAMPLES = int(os.environ.get("BALENA_AGENT_FUZZ_EXAMPLES", "15"))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation["operationId"] not in LEFT_OUT:
                yield method.upper(), path, operation["operationId"]


def test_answers_are_as_described(device: Device) -> None:
    device.apply(pair())
    document = device.api("GET", "/v2/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    base, key = f"http://{device.machine.address}:48484", device.machine.api_key
    headers = {"Authorization": f"Bearer {key}"}
    faults: list[str] = []
    for method, path, name in operations(document):
        operation = schema[path][method]

        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            strategy = operation.as_strategy(generation_mode=mode)
            _run(strategy, name, base, headers, faults)
    assert faults == []
    assert device.api("GET", "/ping").status == 200
    assert "Traceback" not in device.said()
    device.apply(pair(), force=True)


def _run(strategy: Any, name: str, base: str, headers: dict[str, str], faults: list[str]) -> None:
    from hypothesis import given

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
        response = case.call(base_url=base, headers=headers, timeout=60)
        case.validate_response(
            response,
            checks=[
                status_code_conformance, content_type_conformance, response_schema_conformance
            ],
        )  # fmt: skip

    random.seed(1)
    try:
        ask()
    except Exception as error:
        faults.append(f"{name}: {error}"[:1500])
