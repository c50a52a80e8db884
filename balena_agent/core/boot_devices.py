"""Boot configuration without a text file of its own: SSDT tables, ODMDATA, splash image, power.

Each has a short text that stands for what it holds:

    SSDT       configfs.json as it is
    ODMDATA    the three bytes of the boot block, in hexadecimal: `030303`
    splash     "" for the OS's own image, else `sha256:` and the digest of the image
    power      the two values of config.json's `os` as JSON: {"fan_profile": ..., "power_mode": ...}

Source: spec 30 §4.5 to §4.8.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .boot import Backend, BootFault, Value, Values, Wish, quoted_list

# ---- SSDT ----------------------------------------------------------------------------------------

_TABLE = re.compile(r"[A-Za-z0-9._-]+\Z")


def parse_ssdt(text: str) -> Values:
    """The names of the tables. A file that is none of ours counts as empty."""
    known = _document(text).get("ssdt")
    names = tuple(known) if isinstance(known, list) else ()
    return {"ssdt": names} if names and all(isinstance(n, str) for n in names) else {}


def render_ssdt(text: str, values: Values) -> str:
    """The file with these tables; its other members stay."""
    if parse_ssdt(text) == values:
        return text
    rest = {key: value for key, value in _document(text).items() if key != "ssdt"}
    if names := values.get("ssdt"):
        rest["ssdt"] = list(names)
    return json.dumps(rest, separators=(",", ":"))


def wish_ssdt(variables: Mapping[str, str], now: Values) -> Wish:
    given = variables.get("ssdt", "").strip()
    if not given:
        return Wish({})
    try:
        names = quoted_list(given)
    except (ValueError, RecursionError):
        names = ("",)
    if all(_TABLE.match(name) and name.strip(".") for name in names):
        return Wish({"ssdt": names} if names else {})
    rule = "expecting names of letters, digits, '.', '_' and '-'"
    return Wish(now, (f"Ignoring HOST_CONFIGFS_ssdt: {rule}",))


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


SSDT = Backend(
    name="configfs.json",
    prefix="HOST_CONFIGFS_",
    matches=lambda board: board.slug == "up-board",
    claims=lambda name: name == "ssdt",
    wish=wish_ssdt,
    parse=parse_ssdt,
    render=render_ssdt,
)

# ---- ODMDATA -------------------------------------------------------------------------------------

ODMDATA_OFFSETS = (1659, 5243, 18043)
_OPTIONS: Mapping[str, int] = MappingProxyType({"1": 0, "2": 1, "3": 6, "4": 7, "5": 2, "6": 3})
_BY_BYTE = {byte: option for option, byte in _OPTIONS.items()}


def parse_odmdata(text: str) -> Values:
    """The configuration, 1 to 6. BootFault: the three bytes differ, or mean none."""
    found = bytes.fromhex(text)
    if len(found) != len(ODMDATA_OFFSETS) or len(set(found)) != 1:
        raise BootFault(f"the three bytes of ODMDATA differ ({text})")
    if found[0] not in _BY_BYTE:
        raise BootFault(f"the byte {found[0]} of ODMDATA means no configuration")
    return {"configuration": _BY_BYTE[found[0]]}


def render_odmdata(text: str, values: Values) -> str:
    option = values.get("configuration")
    if option is None or parse_odmdata(text) == values:
        return text
    return (bytes([_OPTIONS[str(option)]]) * len(ODMDATA_OFFSETS)).hex()


def wish_odmdata(variables: Mapping[str, str], now: Values) -> Wish:
    """Without the variable the bytes stay what they are."""
    given = variables.get("configuration")
    if given is None:
        return Wish(now)
    if given.strip() not in _OPTIONS:
        return Wish(now, ("Ignoring HOST_ODMDATA_configuration: expecting a number from 1 to 6",))
    return Wish({"configuration": given.strip()})


ODMDATA = Backend(
    name="ODMDATA",
    prefix="HOST_ODMDATA_",
    matches=lambda board: board.slug.endswith("-tx2"),
    claims=lambda name: name == "configuration",
    wish=wish_odmdata,
    parse=parse_odmdata,
    render=render_odmdata,
)

# ---- splash image --------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n"
SPLASH_LIMIT = 2 * 1024 * 1024
_DATA_URI = re.compile(r"data:[^,]{0,100},")


def decoded_image(text: str) -> bytes:
    """The image that a variable holds. ValueError, in words, when it holds none."""
    bare = "".join(_DATA_URI.sub("", text.strip(), count=1).split())
    if len(bare) > SPLASH_LIMIT * 4 // 3 + 4:
        raise ValueError("the image is larger than 2 MiB")
    try:
        image = base64.b64decode(bare, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("expecting an image in base64") from None
    if not image.startswith(PNG):
        raise ValueError("the image is no PNG")
    return image


def image_name(image: bytes) -> str:
    """What stands for an image."""
    return "sha256:" + hashlib.sha256(image).hexdigest()


def parse_splash(text: str) -> Values:
    return {"image": text} if text else {}


def render_splash(text: str, values: Values) -> str:
    return str(values.get("image", ""))


def wish_splash(variables: Mapping[str, str], now: Values) -> Wish:
    given = _splash_variable(variables)
    if not given.strip():
        return Wish({})
    try:
        return Wish({"image": image_name(decoded_image(given))})
    except ValueError as error:
        return Wish(now, (f"Ignoring HOST_SPLASH_image: {error}",))


def splash_image(variables: Mapping[str, str]) -> bytes | None:
    """The image that the variables ask for; None: the OS's own. ValueError: none that can be."""
    given = _splash_variable(variables)
    return decoded_image(given) if given.strip() else None


def _splash_variable(variables: Mapping[str, str]) -> str:
    return next((text for name, text in variables.items() if name.lower() == "image"), "")


SPLASH = Backend(
    name="splash image",
    prefix="HOST_SPLASH_",
    matches=lambda board: True,
    claims=lambda name: name.lower() == "image",
    wish=wish_splash,
    parse=parse_splash,
    render=render_splash,
)

# ---- power mode and fan profile ------------------------------------------------------------------

POWER_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"fan_profile": ("os", "fan", "profile"), "power_mode": ("os", "power", "mode")}
)
"""Where in config.json each value is kept."""


def parse_power(text: str) -> Values:
    return {name: v for name, v in _document(text).items() if name in POWER_KEYS and _is_word(v)}


def render_power(text: str, values: Values) -> str:
    if parse_power(text) == values:
        return text
    return json.dumps({name: values[name] for name in sorted(values) if name in POWER_KEYS})


def wish_power(variables: Mapping[str, str], now: Values) -> Wish:
    values: dict[str, Value] = {}
    problems: list[str] = []
    for name, text in variables.items():
        if _is_word(text):
            values[name] = text
        elif text:
            problems.append(f"Ignoring HOST_CONFIG_{name}: expecting one line of text")
            values |= {name: now[name]} if name in now else {}
    return Wish(values, tuple(problems))


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


POWER = Backend(
    name="power and fan",
    prefix="HOST_CONFIG_",
    matches=lambda board: "-orin-" in board.slug,
    claims=lambda name: name in POWER_KEYS,
    wish=wish_power,
    parse=parse_power,
    render=render_power,
    needs_reboot=lambda now, then: now.get("power_mode") != then.get("power_mode"),
)
