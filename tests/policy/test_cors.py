"""CORS: the conformance cases of the Gateway API, origins, wildcards, credentials, and what caches may mix up."""

from __future__ import annotations

import pytest

from meshlib.call import Call, Reply
from meshlib.policy.cors import REQUESTED_CHARS_MAX, Cors

from .runtimes import on_asyncio, on_every_runtime

FULL = Cors(
    allow_origins=("https://www.foo.com", "https://*.bar.com"),
    allow_methods=("GET", "OPTIONS"),
    allow_headers=("x-header-1", "x-header-2"),
    expose_headers=("x-header-3", "x-header-4"),
    allow_credentials=True,
    max_age_s=3600,
)
ANY = Cors(allow_origins=("*",), allow_methods=("*",), allow_headers=("*",), expose_headers=("*",))
ANY_TRUSTED = Cors(
    allow_origins=("*",), allow_methods=("*",), allow_headers=("*",), expose_headers=("*",), allow_credentials=True
)


def ask(
    cors, method="GET", *, origin: str | None = "https://www.foo.com", want="", headers="", said=(), run=on_asyncio
):
    """The reply's fields as the caller sees them, by lower-case name, and whether the backend was asked."""
    asked = []

    async def backend(call):
        asked.append(call)
        return Reply(200, [(b"Content-Type", b"text/plain"), *said], b"ok")

    async def body(_runtime):
        lines = "".join(
            f"{name}: {value}\r\n"
            for name, value in (
                ("Origin", origin),
                ("Access-Control-Request-Method", want),
                ("Access-Control-Request-Headers", headers),
            )
            if value
        )
        return await cors(Call("svc", method, b"/", lines.encode("latin-1")), backend)

    reply = run(body)
    fields = [(name.lower().decode(), value.decode()) for name, value in reply.headers]
    names = [name for name, _ in fields if name != "vary"]
    assert len(names) == len(set(names)), f"a field is there twice: {fields}"
    return reply.status, dict(fields), bool(asked)


@on_every_runtime
@pytest.mark.parametrize("origin", ["https://www.foo.com", "https://www.bar.com", "https://xpto.www.bar.com"])
def test_a_preflight_is_answered_here(run, origin):
    """What the policy allows, for how long, and to this origin alone; no backend, no body."""
    status, fields, asked = ask(FULL, "OPTIONS", origin=origin, want="GET", headers="x-header-1, x-header-2", run=run)
    assert (status, asked) == (200, False)
    assert fields == {
        "access-control-allow-origin": origin,
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET, OPTIONS",
        "access-control-allow-headers": "x-header-1, x-header-2",
        "access-control-expose-headers": "x-header-3, x-header-4",
        "access-control-max-age": "3600",
        "vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        "content-length": "0",
    }


def test_a_preflight_of_another_origin():
    """403, a document that says which setting it is, and not one field of CORS."""
    status, fields, asked = ask(FULL, "OPTIONS", origin="https://foobar.com", want="GET")
    assert (status, asked, fields["x-meshlib-refused"], fields["vary"]) == (403, False, "cors", "Origin")
    assert not any(name.startswith("access-control-") for name in fields)


@pytest.mark.parametrize(
    ("cors", "methods", "headers", "credentials"),
    [(ANY, "PUT", "x-a, X-B", None), (ANY_TRUSTED, "PUT", "x-a, X-B", "true")],
)
def test_a_wildcard_says_what_was_asked(cors, methods, headers, credentials):
    """Never `*`: with credentials it would mean nothing, and never Authorization. The origin, too, is the caller's."""
    _, fields, _ = ask(cors, "OPTIONS", origin="https://other.foo.com", want="PUT", headers="x-a,,  X-B")
    assert fields["access-control-allow-origin"] == "https://other.foo.com"
    assert (fields["access-control-allow-methods"], fields["access-control-allow-headers"]) == (methods, headers)
    assert fields.get("access-control-allow-credentials") == credentials
    assert "access-control-expose-headers" not in fields
    assert fields["access-control-max-age"] == "5"


def test_a_wildcard_without_a_question():
    """No Access-Control-Request-Headers: no Access-Control-Allow-Headers."""
    _, fields, _ = ask(ANY_TRUSTED, "OPTIONS", want="PUT")
    assert "access-control-allow-headers" not in fields


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ("x" * 200 + "," + "y" * 200, True),
        ("a b", False),
        ("x\u00e9", False),
        ("x:y", False),
        ("a," * (REQUESTED_CHARS_MAX // 2), True),
        ("a," * (REQUESTED_CHARS_MAX // 2) + "a", False),
    ],
)
def test_only_names_are_sent_back(headers, said):
    """What is no list of names, or longer than the bound, is not answered; so the browser refuses."""
    _, fields, _ = ask(ANY, "OPTIONS", want="PUT", headers=headers)
    assert ("access-control-allow-headers" in fields) is said


def test_lists_that_are_empty_say_nothing():
    """Fetch's safe methods and headers are allowed without a word."""
    _, fields, _ = ask(Cors(allow_origins=("*",)), "OPTIONS", want="GET")
    assert not {"access-control-allow-methods", "access-control-allow-headers"} & set(fields)


@on_every_runtime
def test_an_actual_request(run):
    """It goes on, with or without the fields of a preflight; the policy speaks in the place of the backend."""
    said = [
        (b"Access-Control-Allow-Origin", b"*"),
        (b"access-control-allow-credentials", b"false"),
        (b"Access-Control-Max-Age", b"1"),
        (b"Vary", b"Accept-Encoding"),
    ]
    status, fields, asked = ask(FULL, want="GET", headers="x-header-1", said=said, run=run)
    assert (status, asked) == (200, True)
    assert fields == {
        "content-type": "text/plain",
        "access-control-allow-origin": "https://www.foo.com",
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "x-header-3, x-header-4",
        "vary": "Origin",
    }


@pytest.mark.parametrize("origin", ["https://foobar.com", None])
def test_a_request_of_another_origin_or_none(origin):
    """It is served, and says nothing of CORS but that it depends on Origin: a cache may not give it to an allowed one."""
    _, fields, asked = ask(FULL, origin=origin, said=[(b"Access-Control-Allow-Origin", b"*")])
    assert asked
    assert fields == {"content-type": "text/plain", "vary": "Origin"}


@pytest.mark.parametrize(("vary", "count"), [(b"Origin", 1), (b"accept, ORIGIN", 1), (b"*", 1), (b"X-Origin", 2)])
def test_vary_is_not_repeated(vary, count):
    """Where the backend's reply varies by Origin, that is enough."""
    fields = FULL.shared("https://www.foo.com", [(b"Vary", vary)])
    assert sum(name.lower() == b"vary" for name, _ in fields) == count


def test_options_that_are_no_preflight():
    """OPTIONS without Access-Control-Request-Method, or without Origin, is the application's."""
    assert ask(FULL, "OPTIONS")[2]
    assert ask(FULL, "OPTIONS", origin=None, want="GET")[2]


def test_two_origins_are_none():
    """A request has one origin: of two, neither is believed."""

    async def body(_runtime):
        async def backend(_call):
            return Reply(200, [])

        return await ANY(Call("svc", "GET", b"/", b"Origin: https://a\r\nOrigin: https://b\r\n"), backend)

    assert on_asyncio(body).headers == [(b"vary", b"Origin")]


def test_everything_exposed():
    """`*` where no credentials go along; else the names that the reply has, but never Set-Cookie."""
    said = [(b"X-A", b"1"), (b"x-a", b"2"), (b"Set-Cookie", b"a=b")]
    sent = [(b"Access-Control-Allow-Origin", b"*"), *said]
    for cors, exposed in ((ANY, b"*"), (ANY_TRUSTED, b"x-a")):
        fields = dict(cors.shared("https://a", sent))
        assert fields[b"access-control-expose-headers"] == exposed
        assert fields[b"access-control-allow-origin"] == b"https://a"


@pytest.mark.parametrize(
    ("pattern", "origin", "allowed"),
    [
        ("https://a.example", "https://a.example", True),
        ("https://A.example", "https://a.EXAMPLE", True),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "https://a.example:443", True),
        ("https://a.example:443", "https://a.example", True),
        ("http://a.example", "http://a.example:80", True),
        ("https://a.example", "https://a.example:8443", False),
        ("https://a.example:*", "https://a.example:8443", True),
        ("https://a.example:*", "https://a.example", True),
        ("https://a.example", "https://a.example.evil", False),
        ("https://*.a.example", "https://x.a.example", True),
        ("https://*.a.example", "https://x.y.a.example", True),
        ("https://*.a.example", "https://a.example", False),
        ("https://*.a.example", "https://.a.example", False),
        ("https://*.a.example", "https://evila.example", False),
        ("https://*.a.example:8443", "https://x.a.example:8443", True),
        ("https://*.a.example:8443", "https://x.a.example", False),
        ("https://*", "https://anything.example", True),
        ("https://*", "http://anything.example", False),
        ("https://*", "https://anything.example:8443", False),
        ("https://[::1]:8443", "https://[::1]:8443", True),
        ("*", "https://foobar.com:12345", True),
        ("*", "chrome-extension://abcdef", True),
        ("*", "https://a.example/path", False),
        ("*", "https://*", False),
        ("*", "https://*.a.example", False),
        ("*", "https://a b", False),
        ("*", "", False),
        ("*", "null", True),
        ("https://*", "null", False),
    ],
)
def test_origins(pattern, origin, allowed):
    """Scheme, host and port, the scheme's own port, wildcards, and what is no origin at all."""
    assert Cors(allow_origins=(pattern,)).allows(origin) is allowed


def test_null_is_never_trusted():
    """Any page can make itself a sandboxed frame: with credentials it would be everybody."""
    assert not ANY_TRUSTED.allows("null")
