"""core/reference.py: the grammar of image references and their normal form (spec 20 §18.1)."""

from __future__ import annotations

import random
import string

import pytest

from balena_agent.core.errors import InvalidInput
from balena_agent.core.names import image_registry, normal_image
from balena_agent.core.observed import Image, Obtained
from balena_agent.core.reference import Reference, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4
OTHER = "sha256:" + "f" * 64


@pytest.mark.parametrize(
    ("text", "parts", "normal"),
    [
        ("busybox", ("", "busybox", "", ""), "busybox:latest"),
        ("busybox:1.36", ("", "busybox", "1.36", ""), "busybox:1.36"),
        ("docker.io/library/busybox:1", ("", "busybox", "1", ""), "busybox:1"),
        ("index.docker.io/me/web", ("", "me/web", "", ""), "me/web:latest"),
        ("library/busybox", ("", "busybox", "", ""), "busybox:latest"),
        ("localhost/web", ("localhost", "web", "", ""), "localhost/web:latest"),
        ("localhost:5000/a/b:c", ("localhost:5000", "a/b", "c", ""), "localhost:5000/a/b:c"),
        ("host:5000/web", ("host:5000", "web", "", ""), "host:5000/web:latest"),
        ("a.b/web_x/y--z__1", ("a.b", "web_x/y--z__1", "", ""), "a.b/web_x/y--z__1:latest"),
        ("[::1]:5000/web:1", ("[::1]:5000", "web", "1", ""), "[::1]:5000/web:1"),
        (f"r.io/web@{DIGEST}", ("r.io", "web", "", DIGEST), f"r.io/web@{DIGEST}"),
        (f"r.io/web:1@{DIGEST}", ("r.io", "web", "", DIGEST), f"r.io/web@{DIGEST}"),
        (f"r:1/web@{DIGEST}", ("r:1", "web", "", DIGEST), f"r:1/web@{DIGEST}"),
        ("web@md5:" + "a" * 32, ("", "web", "", "md5:" + "a" * 32), "web@md5:" + "a" * 32),
    ],
)
def test_references_and_their_normal_form(text: str, parts: tuple[str, ...], normal: str) -> None:
    found = parse_reference(text)
    assert found == Reference(*parts)
    assert str(found) == normal_image(text) == normal


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "repository"),
        ("Web", "repository"),
        ("a b", "repository"),
        ("web/", "repository"),
        ("/web", "repository"),
        ("a//b", "repository"),
        ("r.io/", "repository"),
        ("-web", "repository"),
        ("web_", "repository"),
        ("a..b/c", "registry"),
        ("r.io:port/web", "registry"),
        ("http://r.io/web", "registry"),
        ("web:", "tag"),
        ("web:-1", "tag"),
        ("web:" + "x" * 129, "tag"),
        ("web:a:b", "tag"),
        ("web@", "digest"),
        ("web@sha256", "digest"),
        ("web@sha256:" + "a" * 31, "digest"),
        ("web@sha256:" + "g" * 64, "digest"),
        (f"web@{DIGEST}@{DIGEST}", "digest"),
        ("a" * 256, "longer"),
        ("web\n", "repository"),
    ],
)
def test_what_is_none_is_told_by_its_part(text: str, word: str) -> None:
    with pytest.raises(InvalidInput, match=word) as caught:
        parse_reference(text)
    assert str(caught.value).startswith("image reference ")


def random_reference(rng: random.Random) -> tuple[Reference, str]:
    """A reference of the grammar, and one way to spell it."""

    def word(letters: str = string.ascii_lowercase + string.digits) -> str:
        return "".join(rng.choice(letters) for _ in range(rng.randrange(1, 6)))

    def path() -> str:
        return rng.choice((".", "_", "__", "-", "---")).join(
            word() for _ in range(rng.choice((1, 2)))
        )

    registry = rng.choice(
        ("", "", "localhost", f"{word()}.{word()}", f"{word()}:5000", "[fe::1]:80")
    )
    parts = [path() for _ in range(rng.randrange(1, 4))]
    if not registry and len(parts) > 1:
        parts[0] = f"x{word()}"  # neither a host nor the default registry's `library`
    repository = "/".join(parts)
    tag = rng.choice(("", word(string.ascii_letters + "_") + rng.choice(("", ".", "-")), "latest"))
    digest = rng.choice(
        ("", "", "sha256:" + "".join(rng.choice("0123456789abcdef") for _ in range(64)))
    )
    name = f"{registry}/{repository}" if registry else repository
    spelt = name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    return Reference(registry, repository, "" if digest else tag, digest), spelt


def test_every_reference_of_the_grammar_is_read_and_its_normal_form_is_stable() -> None:
    rng = random.Random(18)
    for _ in range(5_000):
        wanted, spelt = random_reference(rng)
        found = parse_reference(spelt)
        assert found == wanted, spelt
        normal = str(found)
        assert normal == normal_image(spelt) == normal_image(normal), spelt
        assert str(parse_reference(normal)) == normal, spelt
        assert image_registry(normal) == found.registry, spelt


def test_nothing_but_a_clear_error_comes_of_noise() -> None:
    rng = random.Random(1)
    letters = "aZ0.:/@-_ \n[]\0é" + DIGEST[:9]
    parsed = 0
    for _ in range(20_000):
        text = "".join(rng.choice(letters) for _ in range(rng.randrange(12)))
        try:
            found = parse_reference(text)
        except InvalidInput as error:
            assert "\n" not in str(error)
            continue
        parsed += 1
        assert str(found) == normal_image(text), text
    assert parsed > 100


def test_a_reference_by_digest_means_that_digest_or_what_was_obtained_for_it() -> None:
    """The D rule of spec 20 §18.2: never any image of the repository."""
    wanted = f"r.io/web@{DIGEST}"
    assert Image("i", digests=frozenset({f"x.y/z@{DIGEST}"})).answers_to(wanted)
    assert not Image("i", frozenset({"r.io/web:latest"})).answers_to(wanted)
    assert not Image("i", digests=frozenset({f"r.io/web@{OTHER}"})).answers_to(wanted)
    delta = Image(
        "i", frozenset({"r.io/web:latest"}), obtained=frozenset({Obtained(wanted, 1, "x")})
    )
    assert delta.answers_to(f"r.io/web:1@{DIGEST}")
    assert not delta.answers_to(f"r.io/other@{DIGEST}")
    assert not delta.answers_to(f"r.io/web@{OTHER}")
    moved = Image("i", obtained=frozenset({Obtained("r.io/web:1", 1, "x")}))
    assert not moved.answers_to("r.io/web:1")  # a tag is where the engine says it is
