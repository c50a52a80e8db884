"""Files as they are found on real boards (tests/unit/data/boot).

What is changed and changed back is as it was, and nothing else is ever touched, whatever ends the
lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balena_agent.core.boot import Backend, Values, difference
from balena_agent.core.boot_config_txt import CONFIG_TXT
from balena_agent.core.boot_devices import SSDT
from balena_agent.core.boot_jetson import EXTLINUX, EXTRA_UENV
from balena_agent.core.configjson import merged, parse

FOLDER = Path(__file__).parent / "data" / "boot"
BACKENDS = {"config.txt": CONFIG_TXT, "extlinux.conf": EXTLINUX, "extra_uEnv.txt": EXTRA_UENV}
FORMS = {
    "as it is": lambda text: text,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "no last line feed": lambda text: text.rstrip("\n"),
    "CRLF, no last end": lambda text: text.replace("\n", "\r\n").rstrip("\r\n"),
    "BOM": lambda text: "\ufeff# first\n" + text,
    "odd bytes": lambda text: "# \udcff\udc80\n" + text,
}
CASES = [
    pytest.param(backend, make(path.read_text()), id=f"{path.name}, {form}")
    for path in sorted(FOLDER.iterdir())
    for ending, backend in BACKENDS.items()
    if path.name.endswith(ending)
    for form, make in FORMS.items()
]
ADDED: dict[str, Values] = {
    "config.txt": {
        "zz_new": "1", "gpio": ("9=op",), "dtoverlay": ("zz,a=1",), "dtparam": ("spi=off",),
    },
    "extlinux.conf": {"fdt": "/zz.dtb", "isolcpus": "7"},
    "extra_uEnv.txt": {"fdt": "zz.dtb", "isolcpus": "7"},
}  # fmt: skip


def variables(values: Values) -> dict[str, str]:
    """As the device tells them, and as its owner sends them back."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)[1:-1]
        for name, value in values.items()
    }


def ended(text: str) -> str:
    """The text with an end of its last line, in which alone an edited file may differ."""
    if not text or text.endswith("\n"):
        return text
    return text + "\n"


@pytest.mark.parametrize(("backend", "text"), CASES)
def test_what_is_told_and_sent_back_changes_nothing(backend: Backend, text: str) -> None:
    values = backend.parse(text)
    assert backend.render(text, values) == text
    assert difference(backend, text, variables(values)) == (None, ())


@pytest.mark.parametrize(("backend", "text"), CASES)
def test_every_value_can_be_changed_and_changed_back(backend: Backend, text: str) -> None:
    values = backend.parse(text)
    for name, value in values.items():
        other: Values = {**values, name: "9" if isinstance(value, str) else (*value, "zz")}
        changed = backend.render(text, other)
        assert backend.parse(changed) == other, name
        assert opaque(backend, changed) == opaque(backend, text), name
        back = backend.render(changed, values)
        assert backend.parse(back) == values, name
        assert opaque(backend, back) == opaque(backend, text), name
        if isinstance(value, str) and " " not in value[:1]:
            assert back.replace("\r", "") == ended(text.replace("\r", "")), name


@pytest.mark.parametrize(("backend", "text"), CASES)
def test_what_is_added_and_taken_away_leaves_no_trace(backend: Backend, text: str) -> None:
    values = backend.parse(text)
    for name, more in ADDED[backend.name].items():
        if name in values:
            continue
        added = backend.render(text, {**values, name: more})
        assert backend.parse(added) == {**values, name: more}
        back = backend.render(added, values)
        assert backend.parse(back) == values
        assert opaque(backend, back) == opaque(backend, text)
    none = backend.render(text, {})
    assert backend.parse(none) == {} and opaque(backend, none) == opaque(backend, text)
    again = backend.render(none, values)
    assert backend.parse(again) == values


def opaque(backend: Backend, text: str) -> list[str]:
    """The rows that say nothing to the back end, without a filter that only opens a part."""
    if backend is not CONFIG_TXT:
        words = ("fdt ", "append ", "custom_fdt_file=", "extra_os_cmdline=")
        rows = text.replace("\r", "").split("\n")
        return [row for row in rows if row and not row.strip().lower().startswith(words)]
    rows, filtered = [], False
    for row in text.replace("\r", "").split("\n"):
        if row.startswith("["):
            filtered = row != "[all]"
        known = "=" in row and not filtered and not row.lstrip().startswith(("#", "kernel"))
        if row and not known and row != "[all]":
            rows.append(row)
    return rows


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_parts_for_other_boards_are_never_reported(form: object) -> None:
    assert callable(form)
    four = CONFIG_TXT.parse(form((FOLDER / "rpi4-config.txt").read_text()))
    assert not {"otg_mode", "arm_boost", "gpu_mem", "kernel", "initramfs", "include"} & four.keys()
    assert (four["gpio"], four["dtoverlay"]) == (("17=op,dl", "27=ip,pu"), ("vc4-kms-v3d",))
    five = CONFIG_TXT.parse(form((FOLDER / "rpi5-config.txt").read_text()))
    assert five == {
        "dtparam": ("nvme", "uart0=on", "i2c_vc=on"),
        "dtoverlay": ("disable-bt", "i2c-rtc,pcf85063a,i2c_csi_dsi"),
    }


@pytest.mark.parametrize("name", ["beaglebone-config.json", "nuc-config.json"])
@pytest.mark.parametrize("bom", [False, True])
def test_a_config_json_keeps_all_but_what_is_changed(name: str, bom: bool) -> None:
    raw = (FOLDER / name).read_bytes()
    given = b"\xef\xbb\xbf" + raw if bom else raw
    changed = merged(given, {("hostname",): "kiosk", ("os", "fan", "profile"): "cool"})
    back = merged(changed, {("hostname",): None, ("os", "fan", "profile"): None})
    assert parse(back) == parse(raw)
    assert list(parse(back)) == list(parse(raw))
    assert merged(given, {("deviceType",): parse(raw)["deviceType"]}) == given
    if name.startswith("nuc"):
        assert back == raw.replace(b"1e-7", b"1e-07")


def test_a_configfs_json_keeps_its_other_members() -> None:
    text = (FOLDER / "up-configfs.json").read_text()
    values = SSDT.parse(text)
    assert values == {"ssdt": ("spidev1.0", "spidev1.1")}
    gone = SSDT.render(text, {})
    assert json.loads(gone) == {"other": {"x": [1]}}
    assert json.loads(SSDT.render(gone, values)) == json.loads(text)
