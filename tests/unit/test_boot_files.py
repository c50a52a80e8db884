"""Boot configuration files: samples, and laws that hold for random files and wishes.

The laws, for every back end, text and wish: what is rendered parses to what was wanted; rendering
again changes nothing; a text that says it already stays to the byte; what is opaque survives.
"""

from __future__ import annotations

import base64
import random

import pytest

from balena_agent.core.boot import Backend, Board, BootFault, Values, difference
from balena_agent.core.boot_backends import BACKENDS, backends, is_boot_variable
from balena_agent.core.boot_config_txt import CONFIG_TXT, CONFIG_TXT_FIN
from balena_agent.core.boot_devices import ODMDATA, PNG, POWER, SPLASH, SSDT, image_name
from balena_agent.core.boot_jetson import EXTLINUX, EXTRA_UENV

SAMPLE = """\
# our sample
dtparam=i2c_arm=on,spi=on
dtoverlay=vc4-kms-v3d,cma-384
dtparam=audio=on
gpu_mem=64
dtoverlay=w1-gpio
dtparam=gpiopin=18
dtparam=pullup=on
gpio=5=op,dh
gpio=6=ip
"""
SAMPLE_VALUES = {
    "dtparam": ("i2c_arm=on", "spi=on", "audio=on"),
    "dtoverlay": ("vc4-kms-v3d,cma-384", "w1-gpio,gpiopin=18,pullup=on"),
    "gpu_mem": "64",
    "gpio": ("5=op,dh", "6=ip"),
}
SAMPLE_VARIABLES = {
    "dtparam": '"i2c_arm=on","spi=on","audio=on"',
    "dtoverlay": '"vc4-kms-v3d,cma-384","w1-gpio,gpiopin=18,pullup=on"',
    "gpu_mem": "64",
    "gpio": '"5=op,dh","6=ip"',
}


def applied(backend: Backend, text: str, variables: dict[str, str]) -> str:
    """The text after the difference was written; a second time there must be none."""
    found, _ = difference(backend, text, variables)
    after = found.text if found else text
    assert difference(backend, after, variables)[0] is None
    return after


# ---- which board has what ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slug", "version", "names"),
    [
        ("raspberrypi4-64", "", ["config.txt"]),
        ("fincm3", "", ["config.txt"]),
        ("jetson-nano", "2.46.1", ["extlinux.conf", "extra_uEnv.txt"]),
        ("jetson-nano", "2.47.0", ["extra_uEnv.txt"]),
        ("jetson-tx2", "6.0.0", ["extra_uEnv.txt", "ODMDATA"]),
        ("jetson-agx-orin-devkit", "6.0.0", ["extra_uEnv.txt", "power and fan"]),
        ("imx8m-var-dart", "", ["extra_uEnv.txt"]),
        ("up-board", "", ["configfs.json"]),
        ("generic-amd64", "6.0.0", []),
        ("unknown", "", []),
    ],
)
def test_back_ends_of_a_board(slug: str, version: str, names: list[str]) -> None:
    found = [backend.name for backend in backends(Board(slug, version))]
    assert sorted(found) == sorted([*names, "splash image"])


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("HOST_CONFIG_gpu_mem", True), ("HOST_CONFIG_power_mode", True),
        ("HOST_EXTLINUX_fdt", True), ("HOST_ODMDATA_configuration", True),
        ("HOST_CONFIGFS_ssdt", True), ("HOST_SPLASH_image", True), ("HOST_SPLASH_IMAGE", True),
        ("HOST_SPLASH_other", False), ("HOST_OTHER", False), ("SUPERVISOR_DELTA", False),
    ],
)  # fmt: skip
def test_boot_variables_are_known_on_every_board(name: str, known: bool) -> None:
    assert is_boot_variable(name) is known


# ---- config.txt ----------------------------------------------------------------------------------


def test_H12_the_sample_of_config_txt() -> None:
    assert CONFIG_TXT.parse(SAMPLE) == SAMPLE_VALUES
    assert difference(CONFIG_TXT, SAMPLE, SAMPLE_VARIABLES) == (None, ())


def test_H13_a_new_scalar_keeps_comments() -> None:
    after = applied(CONFIG_TXT, SAMPLE, SAMPLE_VARIABLES | {"gpu_mem": "128"})
    assert after == SAMPLE.replace("gpu_mem=64", "gpu_mem=128")
    after = applied(CONFIG_TXT, SAMPLE, SAMPLE_VARIABLES | {"hdmi_mode:1": "4"})
    assert after == SAMPLE + "hdmi_mode:1=4\n"


def test_H14_an_unquoted_list_of_parameters_is_split_as_the_file_is() -> None:
    after = applied(CONFIG_TXT, "", {"dtparam": "i2c_arm=on,spi=on"})
    assert CONFIG_TXT.parse(after) == {"dtparam": ("i2c_arm=on", "spi=on")}


def test_H15_overlays_come_after_the_base_with_their_parameters_below() -> None:
    variables = {"dtoverlay": '"vc4-kms-v3d,cma-384","w1-gpio,gpiopin=18"', "dtparam": "audio=on"}
    after = applied(CONFIG_TXT, "# top\ndtoverlay=old\n", variables)
    assert after == (
        "# top\ndtparam=audio=on\ndtoverlay=vc4-kms-v3d\ndtparam=cma-384\n"
        "dtoverlay=w1-gpio\ndtparam=gpiopin=18\n"
    )


def test_H16_a_forbidden_name_is_told_and_stays_as_the_file_has_it() -> None:
    text = "kernel=good.img\ninitramfs initrd 0x1\ngpu_mem=16\n"
    found, problems = difference(CONFIG_TXT, text, {"kernel": "evil.img", "gpu_mem": "16"})
    assert found is None
    assert problems == ("Ignoring HOST_CONFIG_kernel: managed by the OS",)


def test_H17_a_filter_is_left_alone_to_the_byte() -> None:
    text = "gpu_mem=16\n[pi4]\ngpu_mem=32\ndtoverlay=x\n# of pi4\n[all]\ndtparam=audio=on\n"
    after = applied(CONFIG_TXT, text, {"gpu_mem": "64", "dtparam": "audio=on", "a": "1"})
    assert after == text.replace("gpu_mem=16", "gpu_mem=64") + "a=1\n"
    ends_inside = "gpu_mem=16\n[pi4]\nx=1\n"
    after = applied(CONFIG_TXT, ends_inside, {"gpu_mem": "16", "a": "1"})
    assert after == ends_inside + "[all]\na=1\n"
    assert applied(CONFIG_TXT, after, {"gpu_mem": "16", "a": "2"}).endswith("[all]\na=2\n")


def test_H18_without_variables_all_goes_but_what_is_the_os_s() -> None:
    text = SAMPLE + "kernel=k.img\ninclude more.txt\n[pi4]\narm_freq=1\n"
    assert applied(CONFIG_TXT, text, {}) == (
        "# our sample\nkernel=k.img\ninclude more.txt\n[pi4]\narm_freq=1\n"
    )


@pytest.mark.parametrize(
    "text", ['"a', '"a",1', '"a",["b"]', '"a\nb"', '"a\\nb"', "a\nkernel=evil.img", "a\rb"]
)
def test_a_list_that_is_none_keeps_what_the_file_has(text: str) -> None:
    found, problems = difference(CONFIG_TXT, "gpio=5=op\n", {"gpio": text})
    assert found is None and problems[0].startswith("Ignoring HOST_CONFIG_gpio: expecting")


def test_a_value_cannot_smuggle_in_a_line() -> None:
    found, problems = difference(CONFIG_TXT, "", {"gpu_mem": "16\nkernel=evil.img"})
    assert found is None and len(problems) == 1


def test_balena_fin_always_has_its_overlay() -> None:
    assert applied(CONFIG_TXT_FIN, "", {}) == "dtoverlay=balena-fin\n"
    after = applied(CONFIG_TXT_FIN, "", {"dtoverlay": '"","x"'})
    assert after == "dtoverlay=x\ndtoverlay=balena-fin\n"
    assert applied(CONFIG_TXT_FIN, after, {"dtoverlay": '"x","balena-fin"'}) == after


def test_a_base_parameter_of_an_overlay_stands_in_its_line() -> None:
    after = applied(CONFIG_TXT, "", {"dtoverlay": "x,a=1,audio=on,b=2"})
    assert after == "dtoverlay=x,a=1,audio=on\ndtparam=b=2\n"


def test_line_ends_and_odd_bytes_survive() -> None:
    text = b"# caf\xe9\r\ngpu_mem=16\r\n".decode("utf-8", "surrogateescape")
    after = applied(CONFIG_TXT, text, {"gpu_mem": "32", "x": "1"})
    assert after.encode("utf-8", "surrogateescape") == b"# caf\xe9\r\ngpu_mem=32\r\nx=1\r\n"


NAMES = ("gpu_mem", "arm_freq", "hdmi_mode:1", "start_x")
PARAMETERS = ("audio=on", "spi=off", "i2c_arm=on", "pin=18", "watchdog=on", "cma-64", "i2c=on")
OVERLAYS = ("vc4", "w1-gpio", "uart0", "i2c-rtc")
OPAQUE = ("# note", "", "include extra.txt", "kernel=k.img", "initramfs a b", "nonsense", "  ")


def random_config_txt(rng: random.Random) -> str:
    rows: list[str] = []
    for _ in range(rng.randrange(14)):
        kind = rng.randrange(8)
        if kind == 0:
            rows.append(rng.choice(OPAQUE))
        elif kind == 1:
            rows.append(rng.choice(("[all]", "[all]", "[pi4]", "[none]", "[EDID=x=1]", "[ALL]")))
        elif kind == 2:
            rows.append(f"{rng.choice(NAMES)}={rng.randrange(3)}")
        elif kind == 3:
            rows.append(f"gpio={rng.randrange(3)}=op,dh")
        elif kind in (4, 5):
            rows.append("dtparam=" + ",".join(rng.choices(PARAMETERS, k=rng.randrange(1, 3))))
        else:
            chosen = rng.choice((*OVERLAYS, ""))
            extra = rng.choices(PARAMETERS, k=rng.randrange(2)) if chosen else []
            rows.append("dtoverlay=" + ",".join((chosen, *extra)))
    end = rng.choice(("\n", "\r\n"))
    return end.join(rows) + (end if rows and rng.random() < 0.8 else "")


def random_variables(rng: random.Random) -> dict[str, str]:
    found = {name: str(rng.randrange(3)) for name in NAMES if rng.random() < 0.3}

    def items(*choices: str) -> str:
        return ",".join(f'"{c}"' for c in choices)

    if rng.random() < 0.5:
        found["dtparam"] = items(*rng.choices(PARAMETERS, k=rng.randrange(1, 4)))
    if rng.random() < 0.5:
        chosen = rng.choices(OVERLAYS, k=rng.randrange(1, 4))
        extra = [",".join((c, *rng.choices(PARAMETERS, k=rng.randrange(3)))) for c in chosen]
        found["dtoverlay"] = items(*extra)
    if rng.random() < 0.3:
        found["gpio"] = items(*(f"{rng.randrange(3)}=op,dh" for _ in range(rng.randrange(1, 3))))
    if rng.random() < 0.2:
        found["kernel"] = "evil.img"
    return found


def opaque_rows(text: str) -> list[str]:
    """What an edit must not touch: rows under a filter, notes, includes, the OS's own."""
    kept, filtered = [], False
    for row in text.replace("\r\n", "\n").split("\n"):
        if row.startswith("["):
            filtered = row.lower() != "[all]"
            if filtered:
                kept.append(row)
        elif filtered or (row in OPAQUE and row.strip()):
            kept.append(row)
    return kept if not kept or kept[-1] else kept[:-1]


@pytest.mark.parametrize("chunk", range(4))
def test_laws_of_config_txt(chunk: int) -> None:
    for seed in range(chunk * 1500, chunk * 1500 + 1500):
        rng = random.Random(seed)
        text, variables = random_config_txt(rng), random_variables(rng)
        values = CONFIG_TXT.wish(variables, CONFIG_TXT.parse(text)).values
        after = CONFIG_TXT.render(text, values)
        assert CONFIG_TXT.parse(after) == values, seed
        assert CONFIG_TXT.render(after, values) == after, seed
        assert CONFIG_TXT.render(text, CONFIG_TXT.parse(text)) == text, seed
        assert [r for r in opaque_rows(after) if r] == [r for r in opaque_rows(text) if r], seed
        assert difference(CONFIG_TXT, after, variables)[0] is None, seed


# ---- extlinux.conf -------------------------------------------------------------------------------

EXTLINUX_SAMPLE = """\
DEFAULT primary
TIMEOUT 30
MENU TITLE Boot options
# a note
LABEL primary
      MENU LABEL primary kernel
      LINUX /Image
      FDT /boot/a.dtb
      APPEND ${cbootargs} root=PARTUUID=ab=c isolcpus=3 quiet
LABEL other
      LINUX /other
      APPEND isolcpus=1
"""


def test_extlinux_edits_the_default_entry_alone() -> None:
    assert EXTLINUX.parse(EXTLINUX_SAMPLE) == {"fdt": "/boot/a.dtb", "isolcpus": "3"}
    after = applied(EXTLINUX, EXTLINUX_SAMPLE, {"fdt": "/boot/b.dtb", "isolcpus": "1,2"})
    wanted = EXTLINUX_SAMPLE.replace("a.dtb", "b.dtb").replace("isolcpus=3", "isolcpus=1,2")
    assert after == wanted
    after = applied(EXTLINUX, EXTLINUX_SAMPLE, {})
    assert EXTLINUX.parse(after) == {}
    assert "APPEND ${cbootargs} root=PARTUUID=ab=c quiet\n" in after and "FDT" not in after
    again = applied(EXTLINUX, after, {"fdt": "/boot/a.dtb", "isolcpus": "3"})
    assert EXTLINUX.parse(again) == {"fdt": "/boot/a.dtb", "isolcpus": "3"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("LABEL a\nAPPEND x\n", "Could not find default entry for extlinux.conf file"),
        ("DEFAULT b\nLABEL a\nAPPEND x\n", "Cannot find label entry (label: b) for extlinux.conf"),
        ("DEFAULT a\nLABEL a\nLINUX x\n", "Could not find APPEND directive in default extlinux"),
        ("", "Could not find default entry"),
    ],
)
def test_extlinux_that_cannot_be_edited(text: str, said: str) -> None:
    with pytest.raises(BootFault) as fault:
        EXTLINUX.parse(text)
    assert str(fault.value).startswith(said)


@pytest.mark.parametrize(
    "variables",
    [
        {"isolcpus": "a=b"}, {"fdt": "a b"}, {"fdt": "a\nAPPEND x"}, {"fdt": "a\0b"},
        {"isolcpus": "1\x08"}, {"fdt": "a\x85b"}, {"fdt": "a\u2028b"}, {"isolcpus": "1\x7f"},
        {"fdt": "\ud800"},
    ],
)  # fmt: skip
def test_extlinux_values_that_break_a_line_are_refused(variables: dict[str, str]) -> None:
    given = {"fdt": "/boot/a.dtb", "isolcpus": "3"} | variables
    found, problems = difference(EXTLINUX, EXTLINUX_SAMPLE, given)
    assert found is None and problems[0].startswith("Ignoring HOST_EXTLINUX_")


def test_the_rest_of_a_command_line_stays_to_the_byte() -> None:
    sample = EXTLINUX_SAMPLE.replace(
        "ab=c isolcpus=3 quiet", 'ab=c  isolcpus=3 dyndbg="file a.c  +p"\tquiet'
    )
    assert sample != EXTLINUX_SAMPLE
    after = applied(EXTLINUX, sample, {"fdt": "/boot/a.dtb", "isolcpus": "1"})
    assert after == sample.replace("isolcpus=3", "isolcpus=1")
    gone = applied(EXTLINUX, sample, {"fdt": "/boot/a.dtb"})
    assert gone == sample.replace("  isolcpus=3", "")


# ---- extra_uEnv.txt ------------------------------------------------------------------------------


def test_H19_extra_uenv_keeps_unknown_keys_and_items() -> None:
    text = "custom_fdt_file=a.dtb\nfoo=1\nextra_os_cmdline=quiet isolcpus=1"
    after = applied(EXTRA_UENV, text, {"fdt": "b.dtb", "isolcpus": "2,3"})
    assert after == "custom_fdt_file=b.dtb\nfoo=1\nextra_os_cmdline=quiet isolcpus=2,3\n"
    assert applied(EXTRA_UENV, after, {}) == "foo=1\nextra_os_cmdline=quiet\n"
    _, problems = difference(EXTRA_UENV, text, {"fdt": "a.dtb", "isolcpus": "1", "other": "x"})
    assert problems == ("Ignoring HOST_EXTLINUX_other: not supported",)


@pytest.mark.parametrize("backend", [EXTLINUX, EXTRA_UENV], ids=lambda b: b.name)
def test_laws_of_the_jetson_files(backend: Backend) -> None:
    for seed in range(3000):
        rng = random.Random(seed)
        text = random_extlinux(rng) if backend is EXTLINUX else random_uenv(rng)
        values: Values = {
            name: rng.choice(("1", "2,3", "x.dtb")) for name in ("fdt", "isolcpus")
            if rng.random() < 0.6
        }  # fmt: skip
        after = backend.render(text, values)
        assert backend.parse(after) == values, seed
        assert backend.render(after, values) == after, seed
        assert backend.render(text, backend.parse(text)) == text, seed


def random_uenv(rng: random.Random) -> str:
    rows = (
        "# note", "foo=1", "", "bar = 2", "custom_fdt_file=a.dtb", "custom_fdt_file=",
        "extra_os_cmdline=quiet isolcpus=1 ro", "extra_os_cmdline=", "extra_os_cmdline=a=b=c",
        "  custom_fdt_file=z.dtb", "extra_os_cmdline=isolcpus",
    )  # fmt: skip
    end = rng.choice(("\n", "\r\n"))
    return end.join(rng.choices(rows, k=rng.randrange(8))) + rng.choice(("", end))


def random_extlinux(rng: random.Random) -> str:
    rows = ["FDT a.dtb", "# note", "", "MENU LABEL x", "INITRD /i", "FDTDIR /d", "  fdt  b.dtb"]
    appends = ["APPEND quiet isolcpus=1", "append root=PARTUUID=a=b", "  APPEND", "APPEND isolcpus"]
    body = [*rng.choices(rows, k=rng.randrange(4)), rng.choice(appends)]
    rng.shuffle(body)
    other = ["LABEL second", "APPEND isolcpus=9", "FDT other.dtb"]
    head = ["TIMEOUT 3", "DEFAULT first", "# x"]
    label = ["LABEL first", *body]
    blocks = [label, other] if rng.random() < 0.5 else [other, label]
    end = rng.choice(("\n", "\r\n"))
    return end.join([*head, *blocks[0], *blocks[1]]) + rng.choice(("", end))


# ---- the ones without a text file ----------------------------------------------------------------


def test_H20_ssdt_keeps_other_members() -> None:
    after = applied(SSDT, '{"x":1,"ssdt":["old"]}', {"ssdt": '"a","b"'})
    assert after == '{"x":1,"ssdt":["a","b"]}'
    assert applied(SSDT, after, {}) == '{"x":1}'
    assert applied(SSDT, "", {"ssdt": "spidev1.0"}) == '{"ssdt":["spidev1.0"]}'
    assert applied(SSDT, "{broken", {}) == "{broken"


@pytest.mark.parametrize("name", ["../etc/passwd", "a/b", '"a","../b"', '"a', "..", "a b"])
def test_a_table_s_name_cannot_be_a_path(name: str) -> None:
    found, problems = difference(SSDT, '{"ssdt":["a"]}', {"ssdt": name})
    assert found is None and problems[0].startswith("Ignoring HOST_CONFIGFS_ssdt")


def test_odmdata_is_three_equal_bytes() -> None:
    assert ODMDATA.parse("060606") == {"configuration": "3"}
    assert applied(ODMDATA, "060606", {"configuration": "2"}) == "010101"
    assert applied(ODMDATA, "060606", {}) == "060606"
    for value in ("0", "7", "x", ""):
        found, problems = difference(ODMDATA, "060606", {"configuration": value})
        assert found is None and len(problems) == 1
    for text in ("060607", "090909"):
        with pytest.raises(BootFault):
            ODMDATA.parse(text)


IMAGE = PNG + b"picture"
ENCODED = base64.b64encode(IMAGE).decode()


@pytest.mark.parametrize("form", ["{}", "data:image/png;base64,{}", "data:x,{}\n", " {} "])
def test_H22_a_splash_image_in_any_form(form: str) -> None:
    variables = {"image": form.format(ENCODED)}
    assert applied(SPLASH, "", variables) == image_name(IMAGE)
    assert applied(SPLASH, image_name(IMAGE), {"IMAGE": form.format(ENCODED)}) == image_name(IMAGE)
    assert applied(SPLASH, image_name(IMAGE), {"image": " "}) == ""


@pytest.mark.parametrize("text", ["bm90IGEgcG5n", "!!", "A" * (3 * 1024 * 1024)])
def test_H21_what_is_no_png_is_told_and_changes_nothing(text: str) -> None:
    for now in ("", image_name(IMAGE)):
        found, problems = difference(SPLASH, now, {"image": text})
        assert found is None and problems[0].startswith("Ignoring HOST_SPLASH_image: ")


def test_H23_the_fan_needs_no_reboot() -> None:
    found, _ = difference(
        POWER, '{"power_mode":"high"}', {"power_mode": "high", "fan_profile": "cool"}
    )
    assert found and not found.reboot and found.names == ("HOST_CONFIG_fan_profile",)
    found, _ = difference(POWER, "{}", {"power_mode": "low"})
    assert found and found.reboot
    assert applied(POWER, '{"fan_profile":"cool"}', {}) == "{}"


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_no_variable_text_can_break_a_back_end(backend: Backend) -> None:
    text = {"extlinux.conf": EXTLINUX_SAMPLE, "ODMDATA": "010101"}.get(backend.name, "")
    rng = random.Random(1)
    for _ in range(500):
        value = "".join(rng.choices('"\\,[]{}=\n\r \0aé#1', k=rng.randrange(8)))
        names = ("image", "ssdt", "configuration", "fdt", "isolcpus", "dtparam", "dtoverlay", "x",
                 "gpio", "power_mode")  # fmt: skip
        applied(backend, text, backend.own({backend.prefix + n: value for n in names}))
