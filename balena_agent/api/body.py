"""Request bodies: from bytes to one object, by content type (spec 10 §1.2).

Theory: clients of ten years send JSON with and without a content type, forms, and nothing at all.
Only what says it is JSON or a form is read; anything else is an empty object. What cannot be read
is refused with `InvalidInput`, which the application answers as the peer does. No body is ever held
in memory beyond the limit, compressed or not.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from ..core.errors import InvalidInput
from ..core.jsonread import Json, shown

BODY_LIMIT = 10 * 1024 * 1024
"""Bytes of a body, after inflating."""

TOO_LARGE = "request entity too large"

_CHUNK = 64 * 1024
_DRAIN_LIMIT = 4 * BODY_LIMIT
_CHARSET = re.compile(r"""charset\s*=\s*["']?([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
_FORM_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)\Z")
_FORM_FIELDS = 1000
_FORM_DEPTH = 32
_MARK = "\ufeff"
"""The byte order mark, which programs of Windows put before their UTF-8."""


def read_body(environ: Mapping[str, Any], limit: int = BODY_LIMIT) -> dict[str, Json] | list[Json]:
    """The object or array in a request's body; {} for an empty one or one that is neither JSON nor
    form. Raises InvalidInput."""
    content_type = str(environ.get("CONTENT_TYPE") or "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/x-www-form-urlencoded"):
        return {}
    raw = _inflated(_read(environ, limit), environ, limit)
    if not raw:
        return {}
    text = _decoded(raw, content_type)
    return _from_json(text) if kind == "application/json" else _from_form(text)


def drain(environ: Mapping[str, Any]) -> None:
    """Read and drop what is left of the body, piece by piece, so that the connection can be used
    again and the client, which may still be sending, gets its answer."""
    left = _DRAIN_LIMIT if _has_body(environ) else 0
    # A client that is gone, or that sends nonsense, is the server's next discovery.
    with contextlib.suppress(OSError, ValueError):
        while left > 0 and (piece := environ["wsgi.input"].read(_CHUNK)):
            left -= len(piece)


def _has_body(environ: Mapping[str, Any]) -> bool:
    return bool(environ.get("wsgi.input_terminated") or _length(environ))


def _length(environ: Mapping[str, Any]) -> int:
    text = str(environ.get("CONTENT_LENGTH") or "0")
    return int(text) if text.isdigit() else 0


def _read(environ: Mapping[str, Any], limit: int) -> bytes:
    if not _has_body(environ):
        return b""
    if _length(environ) > limit:
        raise InvalidInput(TOO_LARGE)
    wanted = limit + 1 if environ.get("wsgi.input_terminated") else _length(environ)
    try:
        raw = bytes(environ["wsgi.input"].read(wanted))
    except (OSError, ValueError) as error:
        raise InvalidInput("the body ended before its time") from error
    if len(raw) > limit:
        raise InvalidInput(TOO_LARGE)
    if len(raw) < _length(environ):
        raise InvalidInput("the body ended before its time")
    return raw


def _inflated(raw: bytes, environ: Mapping[str, Any], limit: int) -> bytes:
    encoding = str(environ.get("HTTP_CONTENT_ENCODING") or "identity").strip().lower()
    if encoding == "identity" or not raw:
        return raw
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise InvalidInput(f"unsupported content encoding {shown(encoding)}")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its header
    try:
        plain = unpack.decompress(raw, limit + 1)
    except zlib.error as error:
        raise InvalidInput("the compressed body is damaged") from error
    if len(plain) > limit:
        raise InvalidInput(TOO_LARGE)
    if not unpack.eof:
        raise InvalidInput("the compressed body is cut short")
    return plain


def _decoded(raw: bytes, content_type: str) -> str:
    named = _CHARSET.search(content_type)
    charset = named[1].lower() if named else "utf-8"
    if not charset.startswith("utf"):
        raise InvalidInput(f"unsupported charset {shown(charset)}")
    try:
        return raw.decode(codecs.lookup(charset).name)
    except (LookupError, UnicodeError) as error:
        raise InvalidInput(f"the body is not text in {charset}") from error


def _from_json(text: str) -> dict[str, Json] | list[Json]:
    try:
        found = json.loads(text.removeprefix(_MARK), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from error
    if not isinstance(found, (dict, list)):
        raise InvalidInput("the body must be a JSON object or array")
    return found


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not a JSON number")


def _from_form(text: str) -> dict[str, Json]:
    """`a=1&b[c]=2` -> {"a": "1", "b": {"c": "2"}}; of a repeated name the last value counts. Both
    `a[]=1&a[]=2` and `a[0]=1&a[1]=2` are lists."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_FORM_FIELDS)
    except ValueError as error:
        raise InvalidInput(f"the form cannot be read: {error}") from error
    found: dict[str, Json] = {}
    for key, value in pairs:
        _put(found, key, value)
    return {name: _listed(value) for name, value in found.items()}


def _put(into: dict[str, Json], key: str, value: str) -> None:
    split = _FORM_KEY.match(key)
    names = [key] if not split else [split[1], *re.findall(r"\[([^\[\]]*)\]", split[2])]
    if len(names) > _FORM_DEPTH:
        raise InvalidInput("the form is nested too deeply")
    for name in names[:-1]:
        deeper = into.get(name)
        into[name] = into = deeper if isinstance(deeper, dict) else {}
    into[names[-1] or str(len(into))] = value


def _listed(value: Json) -> Json:
    """With lists where the names are 0, 1, 2 ..., in this order. Apps are never counted from 0."""
    if not isinstance(value, dict):
        return value
    inner = {name: _listed(each) for name, each in value.items()}
    counted = inner and list(inner) == [str(place) for place in range(len(inner))]
    return list(inner.values()) if counted else inner
