"""Targets in the local form, of services that only wait."""

from __future__ import annotations

from typing import Any

APP = 1


def target(reference: str, count: int, value: str) -> dict[str, Any]:
    """A local target of so many services of one app; 0: no app at all."""
    services = {
        str(number): {
            "imageId": number, "serviceName": f"s{number:02}", "image": reference,
            "running": True, "environment": {"VALUE": value}, "labels": {}, "restart": "always",
        }
        for number in range(1, count + 1)
    }  # fmt: skip
    app = {"name": "bench", "commit": "c" * 32, "releaseId": 1, "services": services,
           "volumes": {}, "networks": {}}  # fmt: skip
    apps = {str(APP): app} if count else {}
    return {"local": {"name": "bench", "config": {}, "apps": apps}}
