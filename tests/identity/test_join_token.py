"""Join tokens: read as they were printed, forged ones refused, never shown."""

from __future__ import annotations

import hashlib
import logging
import random

import pytest

from meshlib.identity.join_token import JoinToken, parse_bearer

ROOT = hashlib.sha256(b"a root").hexdigest()


def test_what_is_printed_is_what_is_read() -> None:
    """The whole text, with or without the white space that a file has around it; two tokens differ."""
    token = JoinToken.create(ROOT)
    text = str(token)
    assert [len(part) for part in text.split(".")] == [12, 43, 64]
    assert JoinToken.parse(f" {text}\r\n") == token
    other = JoinToken.create(ROOT)
    assert (other.id != token.id, other.secret != token.secret, other.root_sha256) == (True, True, ROOT)


def test_the_header_says_id_and_secret_and_not_the_root() -> None:
    """What the service keeps can be found from the header, and the secret cannot be found from it."""
    token = JoinToken.create(ROOT)
    assert token.bearer == f"{token.id}.{token.secret}"
    assert parse_bearer(f"Bearer {token.bearer}") == parse_bearer(f"bearer  {token.bearer}")
    assert parse_bearer(f"Bearer {token.bearer}") == (token.id, token.secret_sha256)
    assert token.secret_sha256 == hashlib.sha256(token.secret.encode()).hexdigest()


def test_another_secret_is_another_hash() -> None:
    """Each character counts, the last one too."""
    token, seen = JoinToken.create(ROOT), set()
    for place in (0, 20, 42):
        other = "A" if token.secret[place] != "A" else "B"
        found = parse_bearer(f"Bearer {token.id}.{token.secret[:place]}{other}{token.secret[place + 1 :]}")
        assert found is not None
        seen.add(found[1])
    assert len(seen - {token.secret_sha256}) == 3


GOOD = JoinToken("0123456789ab", "s" * 43, ROOT)
FORGED = {
    "nothing": "",
    "two parts": GOOD.bearer,
    "four parts": f"{GOOD}.x",
    "an upper-case id": str(GOOD).replace("0123456789ab", "0123456789AB"),
    "a short secret": str(GOOD).replace("sss.", "ss."),
    "a long secret": str(GOOD).replace("sss.", "ssss."),
    "a secret of another alphabet": str(GOOD).replace("sss.", "ss+."),
    "digits of another script": str(GOOD).replace("0123456789ab", "０123456789ab"),
    "a short hash": str(GOOD)[:-1],
    "a line in between": str(GOOD).replace("sss.", "sss\n."),
    "a second line": f"{GOOD}\n{GOOD}",
    "a zero byte": f"{GOOD}\0",
    "a megabyte": str(GOOD) + "f" * (1 << 20),
}


@pytest.mark.parametrize("why", FORGED)
def test_what_is_no_token_is_refused_without_showing_it(why: str) -> None:
    """A sentence that says what a token looks like; a mistyped one is still a secret."""
    with pytest.raises(ValueError, match="no join token: one is <id>") as caught:
        JoinToken.parse(FORGED[why])
    assert "ssss" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_is_no_header_is_nobody() -> None:
    """Another scheme, the whole token, white space, more after it, anything at random: None, never an error."""
    headers = ["", "Bearer", "Bearer ", f"Basic {GOOD.bearer}", f"Bearer {GOOD}", f"Bearer {GOOD.bearer} ", GOOD.bearer]
    headers += [f"Bearer {GOOD.bearer}\n", f"Bearer\t{GOOD.bearer}", "Bearer é.ß", f"Bearer {GOOD.bearer}" * 10_000]
    rng = random.Random(7)
    headers += ["Bearer " + "".join(chr(rng.randrange(0x300)) for _ in range(56)) for _ in range(200)]
    assert [header for header in headers if parse_bearer(header) is not None] == []


def test_a_secret_is_never_in_a_repr_or_a_log(caplog: pytest.LogCaptureFixture) -> None:
    """Only `str` and `bearer` have it."""
    token = JoinToken.create(ROOT)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("meshlib.identity").warning("%r %r", token, {"token": token})
    assert token.id in caplog.text
    assert token.secret not in caplog.text
