"""What the environment says in the place of mesh.yaml: values, silence, and refusals that name the variable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from meshlib.config import environment
from meshlib.config.bootstrap import URLS_MAX
from meshlib.config.endpoints import LABEL_CHARS_MAX, LABELS_MAX
from meshlib.errors import ConfigError

URLS = "https://a:1," * URLS_MAX
LABELS = ",".join(f"l{number}=x" for number in range(LABELS_MAX + 1))


def test_values() -> None:
    """URLs and labels by comma, spaces around them do not count; a label's value may be empty or have `=`."""
    environ = {
        "MESHLIB_CONTROL_URLS": "https://a:1, https://[::1]:2 ",
        "MESHLIB_ZONE": " eu-1a ",
        "MESHLIB_LABELS": "version=v2, track = canary,empty=,odd=a=b",
    }
    assert environment.control_urls(environ) == ("https://a:1", "https://[::1]:2")
    assert environment.zone(environ) == "eu-1a"
    assert environment.labels(environ) == {"version": "v2", "track": "canary", "empty": "", "odd": "a=b"}


@pytest.mark.parametrize("text", [None, "", "  "])
def test_silence(text: str | None) -> None:
    """An unset or empty variable says nothing, so that `or` leads to the file."""
    environ = (
        dict.fromkeys(("MESHLIB_CONTROL_URLS", "MESHLIB_ZONE", "MESHLIB_LABELS"), text or "")
        if text is not None
        else {}
    )
    assert environment.control_urls(environ) == ()
    assert environment.zone(environ) == ""
    assert environment.labels(environ) == {}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("MESHLIB_CONTROL_URLS", "http://a:1", "'http://a:1' is not a URL of the config service: write https://host:port"),
        ("MESHLIB_CONTROL_URLS", "https://a:1,", "'' is not a URL of the config service: write https://host:port"),
        ("MESHLIB_CONTROL_URLS", URLS + "https://b:1", f"has {URLS_MAX + 1} URLs; name at most {URLS_MAX}"),
        ("MESHLIB_ZONE", "z" * (LABEL_CHARS_MAX + 1), "has 257 characters; at most 256 are possible"),
        ("MESHLIB_LABELS", "v2", "'v2' is not a label: write name=value, such as version=v2,track=canary"),
        ("MESHLIB_LABELS", "a=b,=c", "'=c' is not a label: write name=value, such as version=v2,track=canary"),
        ("MESHLIB_LABELS", "a=b,", "'' is not a label: write name=value, such as version=v2,track=canary"),
        ("MESHLIB_LABELS", "a=b, a=c", "names the label 'a' twice"),
        ("MESHLIB_LABELS", LABELS, f"has {LABELS_MAX + 1} labels; at most {LABELS_MAX} are possible"),
        ("MESHLIB_LABELS", "a=" + "x" * 257, "has a label 'a' with 257 characters; at most 256 are possible"),
    ],
)  # fmt: skip
def test_each_mistake(name: str, text: str, said: str) -> None:
    """The name of the variable, and the sentence of the field that it wins over."""
    read: dict[str, Callable[[Mapping[str, str]], Any]] = {
        "MESHLIB_CONTROL_URLS": environment.control_urls,
        "MESHLIB_ZONE": environment.zone,
        "MESHLIB_LABELS": environment.labels,
    }
    with pytest.raises(ConfigError) as caught:
        read[name]({name: text})
    assert str(caught.value) == f"{name}: {said}"
