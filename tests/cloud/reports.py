"""What the real cloud checks in a report before it takes it (spec 31 §6): a wrong type is a 400."""

from __future__ import annotations

from typing import Any

_NULLABLE = {
    "os_version": str, "os_variant": str, "provisioning_progress": int, "provisioning_state": str,
    "api_secret": str, "memory_usage": int, "memory_total": int, "storage_block_device": str,
    "storage_usage": int, "storage_total": int, "cpu_temp": int, "cpu_usage": int, "cpu_id": str,
}  # fmt: skip
_REQUIRED = {
    "status": str, "supervisor_version": str, "ip_address": str, "mac_address": str,
    "api_port": int, "is_undervolted": bool, "apps": dict,
}  # fmt: skip
_UPDATE = {"aborted", "applying changes", "done", "downloaded", "downloading", "rejected"}
_STATUS = {
    "Downloading", "Downloaded", "Installing", "Installed", "Starting", "Running", "Idle",
    "Handing over", "Awaiting handover", "Stopping", "Stopped", "exited", "Deleting", "deleted",
    "Dead", "paused", "restarting", "removing", "configuring", "Unknown",
}  # fmt: skip


def problem(body: Any, uuid: str) -> str:
    """What is wrong with a report, "" for nothing."""
    if not isinstance(body, dict) or list(body) != [uuid] or not isinstance(body[uuid], dict):
        return "the report is not about this device"
    for key, value in body[uuid].items():
        kind = _NULLABLE.get(key) or _REQUIRED.get(key)
        if kind is None:
            return f"{key} is not known"  # the real one does not mind; we do
        if value is None and key in _NULLABLE:
            continue
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            return f"{key} must not be {value!r}"
    return next((text for app in body[uuid].get("apps", {}).values() if (text := _app(app))), "")


def _app(app: Any) -> str:
    if not isinstance(app, dict) or not isinstance(app.get("releases"), dict):
        return "an app needs releases"
    if not isinstance(app.get("release_uuid", ""), str):
        return "release_uuid must be a text"
    return next((text for each in app["releases"].values() if (text := _release(each))), "")


def _release(release: Any) -> str:
    if not isinstance(release, dict) or release.get("update_status") not in _UPDATE:
        return f"a release needs an update_status: {release!r}"
    if not isinstance(release.get("services"), dict):
        return "a release needs services"
    return next((text for each in release["services"].values() if (text := _service(each))), "")


def _service(service: Any) -> str:
    if not isinstance(service, dict) or not service.get("image"):
        return f"a service needs an image: {service!r}"
    if service.get("status") not in _STATUS:
        return f"no such status: {service!r}"
    progress = service.get("download_progress")
    if progress is not None and not isinstance(progress, int):
        return f"no such progress: {service!r}"
    return ""
