"""Host name and proxy: what requests may say, and the files' text. Cases of spec 30 §22."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest

from balena_agent import ctl_client
from balena_agent.api import dbus_host, host_config
from balena_agent.core.errors import InvalidInput
from balena_agent.core.networkconfig import (
    NetworkChange,
    NetworkConfig,
    ProxyChange,
    applied,
    merged,
    read_change,
    read_hostname,
    shown,
)
from balena_agent.core.redsocks import Proxy, local_port, parse, render
from balena_agent.core.steps import SetNetworkConfig
from balena_agent.core.traits import limit

SAMPLE = {
    "type": "socks5", "ip": "10.20.30.40", "port": 1080, "login": "kiosk", "password": "s3cret",
    "dns": "9.9.9.9:53", "noProxy": ["192.0.2.10", "198.51.100.0/24"],
}  # fmt: skip
TEXT = """\
base {
\tlog_debug = off;
\tlog_info = on;
\tlog = stderr;
\tdaemon = off;
\tredirector = iptables;
}

redsocks {
\ttype = socks5;
\tip = 10.20.30.40;
\tport = 1080;
\tlogin = "kiosk";
\tpassword = "s3cret";
\tlocal_ip = 127.0.0.1;
\tlocal_port = 12345;
}

dnsu2t {
\tremote_ip = 9.9.9.9;
\tremote_port = 53;
\tlocal_ip = 127.0.0.1;
\tlocal_port = 53;
}
"""


def test_who_asks_for_a_change_waits_for_its_end() -> None:
    """Each outlasts what is behind it: else a change that comes through is called a failure."""
    step = limit(SetNetworkConfig(NetworkChange("kiosk")))
    assert step < dbus_host._CONFIG_PATIENCE < ctl_client._CHANGE and step < host_config.LIMIT


def change(proxy: Any) -> ProxyChange:
    found = read_change({"proxy": proxy}).proxy
    assert found is not None
    return found


def after(proxy: Any, known: Proxy | None = None) -> Proxy | None:
    return merged(known, change(proxy))


def test_H25_the_text_is_the_peers_to_the_byte() -> None:
    found = applied(NetworkConfig("old"), read_change({"proxy": SAMPLE}), "abc")
    assert found.proxy is not None
    assert render(found.proxy) == TEXT
    assert found.no_proxy == ("192.0.2.10", "198.51.100.0/24")
    assert found.hostname == "old"


def test_without_dns_there_is_no_third_block() -> None:
    assert render(Proxy({"type": "socks4", "ip": "h", "port": "1"})).endswith("12345;\n}\n")


def test_H26_a_change_of_one_setting_leaves_the_others() -> None:
    found = after({"port": 1081}, parse(TEXT))
    assert found is not None
    assert render(found) == TEXT.replace("port = 1080", "port = 1081")


def test_H27_an_equals_sign_in_a_password_survives() -> None:
    first = after({**SAMPLE, "password": "a=b=c"})
    assert first is not None
    again = after({"ip": "10.0.0.9"}, parse(render(first)))
    assert again is not None
    assert 'password = "a=b=c";' in render(again)
    assert shown(NetworkConfig("h", again))["proxy"]["password"] == "a=b=c"


def test_H28_an_empty_proxy_is_none_and_leaves_the_exceptions() -> None:
    known = NetworkConfig("h", parse(TEXT), ("192.0.2.1",))
    found = applied(known, read_change({"proxy": {}}), "abc")
    assert (found.proxy, found.no_proxy) == (None, ("192.0.2.1",))
    cleared = applied(known, read_change({"proxy": None}), "abc")
    assert (cleared.proxy, cleared.no_proxy) == (None, ())


def test_H29_exceptions_alone_leave_the_proxy() -> None:
    known = NetworkConfig("h", parse(TEXT), ("192.0.2.1",))
    asked = read_change({"proxy": {"noProxy": ["192.0.2.10", "198.51.100.0/24"]}})
    found = applied(applied(known, asked, "abc"), asked, "abc")
    assert found.proxy == known.proxy
    assert found.no_proxy == ("192.0.2.10", "198.51.100.0/24")
    assert applied(known, read_change({"proxy": {"noProxy": []}}), "abc").no_proxy == ()


@pytest.mark.parametrize(
    "proxy, named",
    [
        ({**SAMPLE, "password": 'a"b'}, "password"),
        ({**SAMPLE, "password": "a\nb"}, "password"),
        ({**SAMPLE, "password": "a\rb"}, "password"),
        ({**SAMPLE, "password": "a\x85b"}, "password"),
        ({**SAMPLE, "password": "a\u2028b"}, "password"),
        ({**SAMPLE, "password": "a\ud800"}, "password"),
        ({**SAMPLE, "login": "x" * 256}, "login"),
        ({**SAMPLE, "login": 5}, "login"),
        ({**SAMPLE, "type": "ftp"}, "type"),
        ({**SAMPLE, "type": ["socks5"]}, "type"),
        ({**SAMPLE, "ip": "a;b"}, "ip"),
        ({**SAMPLE, "ip": "a\nb"}, "ip"),
        ({**SAMPLE, "ip": "fe80::1%eth0"}, "ip"),
        ({**SAMPLE, "port": 0}, "port"),
        ({**SAMPLE, "port": "65536"}, "port"),
        ({**SAMPLE, "port": True}, "port"),
        ({**SAMPLE, "dns": "1.1.1.1"}, "dns"),
        ({**SAMPLE, "dns": "one.one:53"}, "dns"),
        ({**SAMPLE, "dns": "1.1.1.1:\u0665"}, "dns"),
        ({**SAMPLE, "noProxy": "10.0.0.1"}, "noProxy"),
        ({**SAMPLE, "noProxy": ["example.org"]}, "noProxy.0"),
        ({**SAMPLE, "noProxy": ["10.0.0.0/8", "10.0.0.1; reboot"]}, "noProxy.1"),
        ("socks5", "proxy"),
        ([], "proxy"),
        ({"port": 1081}, "type, ip"),
    ],
)
def test_H30_a_bad_value_is_refused_by_name(proxy: Any, named: str) -> None:
    with pytest.raises(InvalidInput, match=named) as refused:
        applied(NetworkConfig("h"), read_change({"proxy": proxy}), "abc")
    assert "s3cret" not in str(refused.value)


def test_a_password_is_never_shown_in_an_error() -> None:
    with pytest.raises(InvalidInput) as refused:
        read_change({"proxy": {**SAMPLE, "password": 'hush"'}})
    assert "hush" not in str(refused.value)


def test_dns_forms() -> None:
    assert change({"dns": True}).dns == "8.8.8.8:53"
    assert change({"dns": False}).dns == change({"dns": None}).dns == ""
    assert change({"dns": "9.9.9.9:0053"}).dns == "9.9.9.9:53"
    assert change({"port": 1}).dns is None
    assert after({"dns": True}) is None, "DNS alone is no proxy"


def test_null_takes_one_setting_away() -> None:
    found = after({"login": None, "password": None}, parse(TEXT))
    assert found is not None
    assert sorted(found.settings) == ["ip", "port", "type"]


@pytest.mark.parametrize("network", [None, [], "x", 5])
def test_a_network_that_is_no_object_is_refused(network: Any) -> None:
    with pytest.raises(InvalidInput, match=r"\$\.network"):
        read_change(network)


def test_nothing_said_is_nothing_to_do() -> None:
    assert not read_change({})
    assert not read_change({"other": 1})


@pytest.mark.parametrize(
    "name", ["bad name", "a..b", "-x", "x-", "x" * 65, "a_b", ".", "a\n", 5, []]
)
def test_H34_what_is_no_host_name_is_refused(name: Any) -> None:
    with pytest.raises(InvalidInput, match=r"\$\.network\.hostname"):
        read_change({"hostname": name})
    if isinstance(name, str):
        with pytest.raises(InvalidInput, match="Invalid hostname"):
            read_hostname(name)


@pytest.mark.parametrize("name", ["kiosk-7", "A.b.c", "x" * 63, "7"])
def test_host_names(name: str) -> None:
    assert read_change({"hostname": name}) == NetworkChange(name)


def test_H33_no_name_is_the_default_one() -> None:
    for none in ("", None):
        assert applied(NetworkConfig("x"), read_change({"hostname": none}), "9f01234").hostname == (
            "9f01234"
        )


def test_what_an_answer_shows() -> None:
    assert shown(NetworkConfig("h")) == {"hostname": "h"}
    assert shown(NetworkConfig("h", None, ("10.0.0.1",))) == {"hostname": "h"}
    assert shown(NetworkConfig("h", parse(TEXT)))["proxy"] == {
        k: v for k, v in SAMPLE.items() if k != "noProxy"
    }
    half = Proxy({"type": "ftp", "ip": "x", "port": "1"})
    assert shown(NetworkConfig("h", half, ("10.0.0.1",)))["proxy"] == {"noProxy": ["10.0.0.1"]}


def test_reading_is_lenient() -> None:
    text = (
        'redsocks  {\n type=socks4\nip = "h.example"\nport = 1;\n\n???\n local_port = 1;\n}\nx{\n}'
    )
    assert parse(text) == Proxy({"type": "socks4", "ip": "h.example", "port": "1"})
    assert parse("") == parse("redsocks {\ntype = socks5;") == Proxy()


def test_only_a_line_feed_ends_a_line() -> None:
    """redsocks knows no other end, and the peer lets anything into a password."""
    for odd in "\x0b\x0c\x1c\x85\u2028\u2029":
        word = f'a{odd}}}{odd}redsocks {{{odd}ip = "192.0.2.66'.replace('"', "")
        proxy = Proxy({"type": "socks5", "ip": "10.0.0.1", "port": "1", "password": word})
        assert parse(render(proxy)) == proxy


LIVE = {
    "as the peer writes it": TEXT,
    "with the ends of Windows": TEXT.replace("\n", "\r\n"),
    "with a mark at its begin": "\ufeff" + TEXT,
    "without the last line feed": TEXT.rstrip("\n"),
    "as the documentation shows it": TEXT.replace("\t", "").replace("\n\n", "\n"),
    "with blanks and remarks": TEXT.replace("\t", "    ")
    .replace(
        "redsocks {", "redsocks{ // the proxy of the house\n\t/* known types: socks4,\n\t * x */"
    )
    .replace("socks5;", "socks5; // not socks4")
    .replace("= 1080;", " =1080 ; # as always")
    .replace('"kiosk";', '"kiosk"; /* "not me" */'),
    "with remarks for settings": TEXT.replace(
        "\tlogin", '\t// login = "x";\n\t# ip = 1.1.1.1;\n\tlogin'
    ),
}


@pytest.mark.parametrize("text", LIVE.values(), ids=LIVE)
def test_files_as_they_are_found(text: str) -> None:
    assert parse(text) == parse(TEXT)
    assert parse(TEXT).settings["password"] == "s3cret"
    assert render(parse(text)) == TEXT


def test_what_was_in_quotes_stays_in_quotes() -> None:
    text = TEXT.replace("\ttype", '\tbind = "wlan 0;x";\n\tlistenq = 128;\n\ttype')
    assert parse(text).settings["bind"] == "wlan 0;x"
    assert render(parse(text)) == text


@pytest.mark.parametrize(
    "port", ["0", "65536", "\u00b2", "-1", "", pytest.param("9" * 5000, id="long")]
)
def test_a_port_that_is_none_is_no_proxy(port: str) -> None:
    found = parse(TEXT.replace("1080", port))
    assert not found.usable
    assert "port" not in shown(NetworkConfig("h", found))["proxy"]


def test_the_port_that_redsocks_listens_on() -> None:
    assert local_port(TEXT) == local_port("") == 12345
    assert local_port(TEXT.replace("12345", "31338")) == 31338


def test_what_is_written_reads_back() -> None:
    chance = random.Random(7)
    letters = "".join(c for c in string.printable if c.isprintable() and c != '"') + "äß"
    for _ in range(500):
        word = "".join(chance.choices(letters, k=chance.randrange(1, 20)))
        asked = {**SAMPLE, "password": word, "login": word[::-1], "dns": chance.random() < 0.5}
        proxy = after(asked)
        assert proxy is not None
        assert parse(render(proxy)) == proxy
        assert proxy.settings["password"] == word
