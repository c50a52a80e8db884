"""balena-agentctl without a bus: what is printed for which document, and which exit code follows.

`data/ctl/NAME.json` are Describe documents; `NAME.status.txt` and `NAME.services.txt` what the
commands print for them.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from balena_agent import ctl, ctl_commands, ctl_shell
from balena_agent.core.errors import (
    AgentError,
    BusUnavailable,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
)
from balena_agent.ctl_client import Event, JobResult, Progress
from balena_agent.ctl_view import (
    Style,
    preview_lines,
    rows_of,
    service_table,
    signal_line,
    status_lines,
)
from balena_agent.host.wire import BusRefusal

DATA = Path(__file__).parent / "data/ctl"
DOCUMENTS = sorted(path.stem for path in DATA.glob("*.json"))
WRITTEN_AT = 1000.0


def document(name: str) -> dict[str, Any]:
    loaded = json.loads((DATA / f"{name}.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def planned(step: str, subject: str, app: str, service: str, cause: str) -> dict[str, str]:
    return {"step": step, "subject": subject, "app": app, "service": service, "cause": cause}


PREVIEW: dict[str, Any] = {
    "steps": [
        planned("fetch", "image busybox:2", "1", "web", "image is missing"),
        planned("create-network", "network 1_default", "1", "", "no such network yet"),
        planned("start", "service 1/web", "1", "web", ""),
    ],
    "untouched": [{"app": "1", "service": "db"}, {"app": "1", "service": "cache"}],
    "waits": [{"subject": "service 1/web", "reason": "waits for db", "until": None}],
    "rejected": [],
    "warnings": ["app 'x': odd\x1b[31m"],
}


LOG = (
    b'{"message":"Starting","isSystem":true,"timestamp":1000}\n'
    b'{"serviceName":"web","message":"odd\\u001b[31m","isStdErr":false,"timestamp":2000,"serviceId":1}\n'
)


HOST_CONFIG = {
    "hostname": "kiosk-7",
    "proxy": {"type": "socks5", "ip": "10.0.0.1", "port": 1080, "password": "s3cret",
              "noProxy": ["192.0.2.1", "10.0.0.0/8"]},
}  # fmt: skip


class Fake:
    """A client that answers from a file and remembers what it was asked for."""

    def __init__(self, name: str = "busy", error: AgentError | None = None) -> None:
        self.name = name
        self.error = error
        self.result = JobResult("done", "started")
        self.asked: list[tuple[Any, ...]] = []
        self.closed = False

    def _ask(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error:
            raise self.error

    def describe(self) -> dict[str, Any]:
        self._ask("describe")
        return document(self.name)

    def target(self) -> dict[str, Any]:
        self._ask("target")
        return {"local": {"name": "ü"}}

    def preview(self, text: str) -> dict[str, Any]:
        self._ask("preview", text)
        return PREVIEW if text.startswith("{") else {}

    def power(self, off: bool, force: bool) -> None:
        self._ask("power", off, force)

    def blink(self) -> None:
        self._ask("blink")

    def host_config(self) -> dict[str, Any]:
        self._ask("host_config")
        return HOST_CONFIG

    def set_hostname(self, name: str, force: bool) -> None:
        self._ask("set_hostname", name, force)

    def set_proxy(self, proxy: dict[str, Any], force: bool) -> None:
        self._ask("set_proxy", proxy, force)

    def service(
        self, verb: str, app_id: int, name: str, force: bool, progress: Progress
    ) -> JobResult:
        self._ask("service", verb, app_id, name, force)
        return self.result

    def app(self, verb: str, app_id: int, force: bool, progress: Progress) -> JobResult:
        self._ask("app", verb, app_id, force)
        return self.result

    def update(self, force: bool, cancel: bool, progress: Progress) -> JobResult:
        self._ask("update", force, cancel)
        return self.result

    def set_target(self, text: str, force: bool, progress: Progress) -> JobResult:
        self._ask("set_target", text, force)
        return self.result

    def regenerate_key(self) -> str:
        self._ask("regenerate_key")
        return "0123abc"

    def clean_up(self) -> list[str]:
        self._ask("clean_up")
        return ["1_old", "9_left"]

    def events(self) -> Iterator[Event]:
        for number in range(1000):
            yield Event(0.0, "UpdateStarted", "/io/balena/Agent1", [f"commit{number}"])

    def log(self, options: dict[str, Any]) -> io.BytesIO:
        self._ask("log", options)
        return io.BytesIO(LOG)

    def close(self) -> None:
        self.closed = True


def run(fake: Fake, *words: str) -> tuple[int, str]:
    out = io.StringIO()
    code = ctl.main(words, connect=lambda: fake, out=out)  # type: ignore[arg-type, return-value]
    assert fake.closed
    return code, out.getvalue()


# -- what is printed ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_status_as_text(name: str) -> None:
    lines = status_lines(document(name), Style(now=WRITTEN_AT))
    assert "\n".join(lines) + "\n" == (DATA / f"{name}.status.txt").read_text()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_services_as_a_table(name: str) -> None:
    lines = service_table(rows_of(document(name)), Style())
    assert "\n".join(lines) + "\n" == (DATA / f"{name}.services.txt").read_text()


def test_colours_and_bars_are_for_terminals() -> None:
    rich = "\n".join(status_lines(document("busy"), Style(rich=True, now=WRITTEN_AT)))
    assert "\x1b[31m" in rich and "[#########-----------] 45 %" in rich
    _, out = run(Fake("busy"))
    assert "\x1b" not in out and "###" not in out


def test_text_from_elsewhere_cannot_steer_the_terminal() -> None:
    assert "\x1b" in document("busy")["failures"][0]["error"]
    for style in (Style(), Style(rich=True)):
        for line in status_lines(document("busy"), style):
            assert "\x1b[31mthing" not in line
    assert "\x1b" not in signal_line("StepFailed", "/", ["app", "web", "start", "\x1b[2J"])


def test_a_document_of_another_version_is_shown_as_far_as_it_goes() -> None:
    assert list(status_lines({"version": "9", "news": 1}, Style()))
    old = document("busy")
    for name in ("waits", "failures", "running", "notices", "update"):
        del old[name]
    assert any("shop" in line for line in status_lines(old, Style()))


@pytest.mark.parametrize(
    ("name", "path", "body", "line"),
    [
        ("StepStarted", "", ["a", "web", "fetch", "image missing"],
         "StepStarted        fetch web: image missing"),
        ("StepStarted", "", ["", "", "reboot", ""], "StepStarted        reboot"),
        ("UpdateFinished", "", ["0123456789", True, ""], "UpdateFinished     0123456 done"),
        ("UpdateFinished", "", ["0123456", False, "no"], "UpdateFinished     0123456 failed: no"),
        ("Finished", "/job/3", ["done", "started"], "Finished           job/3 done started"),
        ("InterfacesAdded", "", ["/io/balena/Agent1/job/1", {}], "InterfacesAdded    job/1"),
        ("AgentStopped", "", [], "AgentStopped"),
        ("PropertiesChanged", "/app/a", ["x", {"Status": "settled"}, []],
         "PropertiesChanged  app/a Status=settled"),
    ],
)  # fmt: skip
def test_signals_as_lines(name: str, path: str, body: list[Any], line: str) -> None:
    assert signal_line(name, "/io/balena/Agent1" + path, body) == line


# -- commands -------------------------------------------------------------------------------------


def test_an_error_is_told_once_and_not_as_a_present_one_when_all_is_well() -> None:
    now = document("busy") | {"lastError": "Failed to start: no such command", "failures": []}
    (line,) = [each for each in status_lines(now, Style()) if "no such command" in each]
    assert line == "Last error: Failed to start: no such command"
    now |= {"settled": True, "update": {"failed": False}}
    (line,) = [each for each in status_lines(now, Style()) if "no such command" in each]
    assert line == "   Earlier: Failed to start: no such command"
    failing = {"step": "start", "subject": "service 1/web", "error": "no such command"}
    now |= {"failures": [failing | {"attempts": 1, "retryAt": None}]}
    (line,) = [each for each in status_lines(now, Style()) if "no such command" in each]
    assert line.startswith("   Failing: ")


def test_wrong_settings_are_told() -> None:
    told = [*status_lines(document("settled") | {"problems": ["a", "b"]}, Style())]
    assert told[-2:] == ["  Problems: a", "            b"]


def test_status_is_the_default() -> None:
    assert run(Fake("settled")) == run(Fake("settled"), "status")
    assert run(Fake("settled"))[0] == ctl_shell.DONE


@pytest.mark.parametrize("words", [("--json",), ("status", "--json"), ("--json", "status")])
def test_json_before_and_after_the_command(words: tuple[str, ...]) -> None:
    code, out = run(Fake("busy"), *words)
    assert (code, json.loads(out)) == (ctl_shell.DONE, document("busy"))


def test_services_and_target_as_json() -> None:
    _, out = run(Fake("settled"), "services", "--json")
    assert [(row["app"], row["appId"], row["name"]) for row in json.loads(out)] == [
        ("shop", 7, "my-db"),
        ("shop", 7, "web"),
    ]
    assert run(Fake(), "target", "show")[1] == '{\n  "local": {\n    "name": "ü"\n  }\n}\n'


def test_what_a_target_would_do(tmp_path: Path) -> None:
    file = tmp_path / "target.json"
    file.write_text("{}")
    fake = Fake()
    code, out = run(fake, "target", "diff", str(file))
    assert (code, fake.asked) == (ctl_shell.DONE, [("preview", "{}")])
    assert out.splitlines() == [
        "fetch busybox:2 for web: image is missing",
        "create-network 1_default: no such network yet",
        "start web",
        "untouched: db, cache",
        "wait service 1/web: waits for db",
        "warning: app 'x': odd [31m",
    ]
    assert json.loads(run(Fake(), "target", "diff", str(file), "--json")[1]) == PREVIEW


def test_apps_are_named_where_there_are_several() -> None:
    rejected = [{"app": "2", "problem": "bad ports"}]
    lines = list(preview_lines(PREVIEW | {"rejected": rejected, "waits": [], "warnings": []}))
    assert lines[0] == "fetch busybox:2 for 1/web: image is missing"
    assert lines[2:] == ["start 1/web", "untouched: 1/db, 1/cache", "rejected app 2: bad ports"]


def test_a_target_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(" "))
    assert run(Fake(), "target", "diff", "-") == (ctl_shell.DONE, "nothing to do\n")


def test_a_bad_target_is_a_failure_with_its_problems(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "target.json"
    file.write_text("{}")
    problems = "Invalid target state.\n$.local: is missing"
    bad = BusRefusal("io.balena.Agent1.Error.InvalidTarget", problems)
    assert run(Fake(error=bad), "target", "diff", str(file))[0] == ctl_shell.FAILED
    assert problems in capsys.readouterr().err
    for content in (None, b"\xff"):
        file.unlink() if content is None else file.write_bytes(content)
        assert run(Fake(), "target", "diff", str(file))[0] == ctl_shell.FAILED
        assert str(file) in capsys.readouterr().err


def test_a_target_is_set_from_a_file(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "target.json"
    file.write_text('{"local": {}}')
    fake = Fake()
    assert run(fake, "target", "set", str(file), "--force") == (ctl_shell.DONE, "target: started\n")
    assert fake.asked == [("set_target", '{"local": {}}', True)]
    fake.result = JobResult("failed", "fetch image x: no such image. It is tried again.", "")
    assert run(fake, "target", "set", str(file))[0] == ctl_shell.FAILED
    assert "no such image" in capsys.readouterr().err
    assert run(Fake(), "target", "set", str(tmp_path / "none"))[0] == ctl_shell.FAILED


def test_the_new_key_is_printed() -> None:
    assert run(Fake(), "key", "regenerate") == (ctl_shell.DONE, "0123abc\n")
    assert json.loads(run(Fake(), "key", "regenerate", "--json")[1]) == {"key": "0123abc"}


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("start", "web"), ("service", "start", 7, "web", False)),
        (("stop", "web"), ("service", "stop", 7, "web", False)),
        (("restart", "--force", "shop/web"), ("service", "restart", 7, "web", True)),
        (("stop", "7/my-db", "--force"), ("service", "stop", 7, "my-db", True)),
        (("stop", "abc123/my-db"), ("service", "stop", 7, "my-db", False)),
        (("stop", "bad one/x"), ("service", "stop", 9, "x", False)),
        (("restart-app", "shop"), ("app", "restart-app", 7, False)),
        (("restart-app", "abc123", "--force"), ("app", "restart-app", 7, True)),
        (("purge", "9"), ("app", "purge", 9, False)),
        (("cleanup",), ("clean_up",)),
        (("update",), ("update", False, False)),
        (("update", "--force", "--cancel"), ("update", True, True)),
        (("key", "regenerate"), ("regenerate_key",)),
        (("reboot",), ("power", False, False)),
        (("poweroff", "--force"), ("power", True, True)),
    ],
)
def test_commands_ask_for_the_right_thing(words: tuple[str, ...], asked: tuple[Any, ...]) -> None:
    fake = Fake("busy")
    assert run(fake, *words)[0] == ctl_shell.DONE
    assert fake.asked[-1] == asked


def test_a_name_in_several_apps_has_to_be_made_clear() -> None:
    several = document("busy")
    several["apps"][1]["services"][0]["name"] = "web"
    with pytest.raises(InvalidInput, match="shop/web, bad one/web"):
        ctl_commands.resolve(several, "web")
    assert ctl_commands.resolve(several, "9/web") == (9, "web")
    with pytest.raises(NotFound):
        ctl_commands.resolve(several, "8/web")


def test_an_app_is_named_unless_there_is_only_one() -> None:
    several = document("busy")
    with pytest.raises(InvalidInput, match=r"7 .shop., 9"):
        ctl_commands.resolve_app(several, "")
    with pytest.raises(NotFound, match="'8'"):
        ctl_commands.resolve_app(several, "8")
    with pytest.raises(NotFound, match="no app on"):
        ctl_commands.resolve_app({"apps": []}, "")
    assert ctl_commands.resolve_app({"apps": several["apps"][:1]}, "") == (7, "shop")


def test_a_purge_always_names_its_app() -> None:
    with pytest.raises(SystemExit):
        ctl.main(["purge"])


def test_clean_up_tells_what_has_gone() -> None:
    assert run(Fake(), "cleanup") == (ctl_shell.DONE, "1_old\n9_left\n")
    assert json.loads(run(Fake(), "cleanup", "--json")[1]) == ["1_old", "9_left"]


def test_monitor_ends_after_its_count() -> None:
    code, out = run(Fake(), "monitor", "--count", "2")
    assert code == ctl_shell.DONE
    assert [line.split()[-1] for line in out.splitlines()] == ["commit0", "commit1"]
    _, out = run(Fake(), "monitor", "--count", "1", "--json")
    assert json.loads(out)["signal"] == "UpdateStarted"


# -- exit codes -----------------------------------------------------------------------------------

LOCKED = "io.balena.Agent1.Error.Locked"
DENIED = "org.freedesktop.DBus.Error.AccessDenied"
CHALLENGE = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BusRefusal("io.balena.Agent1.Error.RefusedByHost", "no"), ctl_shell.FAILED),
        (DeadlineExceeded("25 s"), ctl_shell.FAILED),
        (BusRefusal(LOCKED, "shop/web"), ctl_shell.LOCKED),
        (BusRefusal(DENIED, "no"), ctl_shell.REFUSED),
        (BusRefusal(CHALLENGE, "no"), ctl_shell.REFUSED),
        (BusUnavailable("no bus"), ctl_shell.NOT_RUNNING),
    ],
)
def test_exit_codes_of_errors(error: AgentError, code: int, capsys: Any) -> None:
    assert run(Fake(error=error), "reboot")[0] == code
    said = capsys.readouterr().err
    assert said.startswith("balena-agentctl: ")
    assert ("systemctl status balena-agent" in said) == (code == ctl_shell.NOT_RUNNING)
    code_again, out = run(Fake(error=error), "reboot", "--json")
    assert code_again == code and set(json.loads(out)) == {"error", "message"}


def test_a_bus_that_is_away_is_not_taken_for_an_absent_agent(capsys: Any) -> None:
    def connect() -> Any:
        raise BusUnavailable("cannot reach the system bus: no such file")

    assert ctl.main(["status"], connect=connect) == ctl_shell.NOT_RUNNING
    assert capsys.readouterr().err == (
        "balena-agentctl: cannot reach the system bus: no such file\n"
    )


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (JobResult("done", "started"), ctl_shell.DONE),
        (JobResult("failed", "no", "org.freedesktop.DBus.Error.Failed"), ctl_shell.FAILED),
        (JobResult("failed", "lock held", LOCKED), ctl_shell.LOCKED),
        (JobResult("cancelled", "the agent is stopping"), ctl_shell.FAILED),
    ],
)
def test_exit_codes_of_jobs(result: JobResult, code: int, capsys: Any) -> None:
    fake = Fake()
    fake.result = result
    got, out = run(fake, "start", "web")
    assert got == code
    assert result.message in (out if code == ctl_shell.DONE else capsys.readouterr().err)
    assert json.loads(run(fake, "start", "web", "--json")[1])["state"] == result.state


@pytest.mark.parametrize(
    "words", [["nonsense"], ["start"], ["monitor", "--count", "0"], ["target"], ["target", "diff"]]
)
def test_wrong_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ctl.main(words, connect=Fake)  # type: ignore[arg-type]
    assert caught.value.code == ctl_shell.USAGE


def test_an_unknown_service_is_a_failure_and_an_unclear_one_wrong_usage(capsys: Any) -> None:
    assert run(Fake(), "start", "nothing")[0] == ctl_shell.FAILED
    assert "no service 'nothing'" in capsys.readouterr().err
    assert run(Fake(error=InvalidInput("unclear")), "start", "web")[0] == ctl_shell.USAGE


def test_help_does_not_load_the_bus_library() -> None:
    program = (
        "import sys; from balena_agent import ctl\n"
        "try: ctl.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(n.split('.')[0] in ('dbus_next', 'asyncio') for n in sys.modules))"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True)


def test_logs_are_lines_that_a_terminal_does_not_obey() -> None:
    fake = Fake()
    code, said = run(fake, "logs")
    assert code == 0 and fake.asked == [("log", {"follow": False, "count": 100})]
    first, second = (line.partition(" ")[2] for line in said.splitlines())
    assert first == "- | Starting" and second == "web | odd [31m"


def test_logs_as_json_are_passed_on_as_they_are() -> None:
    assert run(Fake(), "--json", "logs") == (0, LOG.decode())


def test_logs_of_a_service_that_is_not_here() -> None:
    fake = Fake()
    code, _ = run(fake, "logs", "-f", "-n", "5", "nobody")
    assert code == 1 and fake.asked == [("describe",)]


# -- the machine ----------------------------------------------------------------------------------


def test_the_host_name_is_printed_and_set() -> None:
    assert run(Fake(), "hostname") == (0, "kiosk-7\n")
    assert json.loads(run(Fake(), "hostname", "--json")[1]) == {"hostname": "kiosk-7"}
    fake = Fake()
    assert run(fake, "hostname", "other", "--force") == (0, "")
    assert fake.asked == [("set_hostname", "other", True)]
    assert run(fake := Fake(), "hostname", "") == (0, "")
    assert fake.asked == [("set_hostname", "", False)]


def test_blink() -> None:
    assert run(fake := Fake(), "blink") == (0, "")
    assert fake.asked == [("blink",)]


def test_a_proxy_is_printed_without_its_password() -> None:
    _, out = run(Fake(), "proxy", "show")
    assert "s3cret" not in out
    assert out.splitlines() == [
        "type: socks5", "ip: 10.0.0.1", "port: 1080", "password: (set)",
        "noProxy: 192.0.2.1 10.0.0.0/8",
    ]  # fmt: skip
    assert json.loads(run(Fake(), "proxy", "show", "--json")[1]) == HOST_CONFIG["proxy"]


def test_a_proxy_is_set_with_a_password_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a=b;c\n")
    fake = Fake()
    code, _ = run(
        fake, "proxy", "set", "--type", "socks5", "--ip", "10.0.0.1", "--port", "1080", "--login",
        "me", "--password-file", str(secret), "--no-proxy", "10.0.0.0/8", "192.0.2.1",
    )  # fmt: skip
    wanted = {"type": "socks5", "ip": "10.0.0.1", "port": 1080, "login": "me", "password": "a=b;c",
              "noProxy": ["10.0.0.0/8", "192.0.2.1"]}  # fmt: skip
    assert (code, fake.asked) == (0, [("set_proxy", wanted, False)])


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", ""])
def test_a_port_that_is_none_is_wrong_usage(port: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        ctl.main(["proxy", "set", "--type", "socks5", "--ip", "10.0.0.1", f"--port={port}"])
    assert caught.value.code == ctl_shell.USAGE
    assert f"{port!r} is not a whole number from 1 to 65535" in capsys.readouterr().err


def test_a_proxy_is_cleared() -> None:
    assert run(fake := Fake(), "proxy", "clear", "--force") == (0, "")
    assert fake.asked == [("set_proxy", {}, True)]
