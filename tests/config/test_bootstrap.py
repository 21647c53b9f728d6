"""The bootstrap fields of the config service and of what a process registers: values, built-in ones, and refusals."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.config import MeshConfig, config_of, parse_config
from meshlib.config.bootstrap import BOOTSTRAP, URLS_MAX, parse_control_url
from meshlib.config.endpoints import LABEL_CHARS_MAX, LABELS_MAX
from meshlib.errors import ConfigError

from .documents import FULL

HEAD = "version: 1\nmesh: m\n"


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(HEAD + text, "mesh.yaml")
    (found,) = caught.value.problems
    return str(found)


def test_a_full_file() -> None:
    """Every field is read, in seconds where it is a duration."""
    config = parse_config(FULL)
    assert config.control is not None
    assert config.control.urls == ("https://127.0.0.1:7443", "https://[::1]:7443")
    assert (config.control.fallback, config.control.start_timeout) == ("snapshot", 60.0)
    assert (config.identity.source, config.policy_source) == ("control", "file")
    assert (config.ca.leaf_ttl, config.ca.root_ttl) == (86_400.0, 31_536_000.0)
    assert (config.instance.zone, config.instance.weight, config.instance.labels) == ("eu-1a", 2, {"version": "2"})


def test_built_in() -> None:
    """Without `control` there is no config service and identity is dev; with it identity is control."""
    alone = parse_config(HEAD)
    assert (alone.control, alone.identity.source, alone.policy_source) == (None, "dev", "file")
    assert (alone.ca.leaf_ttl, alone.ca.root_ttl) == (24 * 3600.0, 365 * 24 * 3600.0)
    assert (alone.instance.zone, alone.instance.weight, alone.instance.labels) == ("", 1, {})
    for identity in ("", "identity: {}\n", "identity: {source: control}\n"):
        served = parse_config(HEAD + "control: {urls: ['https://c:7443']}\n" + identity)
        assert served.control is not None
        assert (served.identity.source, served.trust_domain) == ("control", "m.dev")
        assert (served.control.fallback, served.control.start_timeout) == ("snapshot", 60.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("control: {}", "3:1: control.urls: is required"),
        ("control: {urls: []}", "3:17: control.urls: must not be empty"),
        ("control: {urls: 'https://c:1'}", "3:17: control.urls: must be a list, not 'https://c:1'"),
        ("control: {urls: ['http://c:1']}", "3:18: control.urls[0]: 'http://c:1' is not a URL of the config service: write https://host:port"),
        ("control: {urls: ['https://c']}", "3:18: control.urls[0]: 'https://c' is not a URL of the config service: write https://host:port, and nothing after it"),
        ("control: {urls: ['https://c:1'], fallback: none}", "3:44: control.fallback: 'none' is not one of snapshot, file"),
        ("control: {urls: ['https://c:1'], start_timeout: 0s}", "3:49: control.start_timeout: '0s' is no time at all: write at least 1ms"),
        ("policy_source: git", "3:16: policy_source: 'git' is not one of file, store"),
        ("ca: {leaf_ttl: 4s}", "3:16: ca.leaf_ttl: must be a duration from 5s to 8760h, not 4s"),
        ("ca: {leaf_ttl: 8761h}", "3:16: ca.leaf_ttl: must be a duration from 5s to 8760h, not 8761h"),
        ("ca: {leaf_ttl: 5}", "3:16: ca.leaf_ttl: 5 is not a duration: write up to four whole numbers, each with h, m, s or ms, such as 250ms"),
        ("ca: {root_ttl: 59s}", "3:16: ca.root_ttl: must be a duration from 1m to 87600h, not 59s"),
        ("ca: {root_ttl: 23h}", "3:5: ca: leaf_ttl is 24h, above root_ttl, which is 23h; lower the one or raise the other"),
        ("instance: {weight: 0}", "3:20: instance.weight: must be a whole number from 1 to 128, not 0"),
        ("instance: {labels: {version: 2}}", "3:30: instance.labels.version: must be text, not 2; put it in quotes"),
        ("instance: {labels: {'': a}}", "3:20: instance.labels: has a label with a name of 0 characters; 1 to 256 are possible"),
    ],
)  # fmt: skip
def test_each_mistake(text: str, said: str) -> None:
    """One mistake is one problem, with the way out."""
    assert problem(text + "\n") == f"mesh.yaml:{said}"


@pytest.mark.parametrize(
    "url",
    [
        "", "c:1", "HTTPS://c:1", "https://", "https://:1", "https://c:0", "https://c:65536", "https://c:1/", "https://c:1/a",
        "https://c:1?a", "https://c:1#a", "https://u@c:1", "https://u:p@c:1", "https://::1:1", " https://c:1", 7, None, ["https://c:1"],
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_config_service(url: Any) -> None:
    """https, a host and a port; no user, path, query or fragment."""
    with pytest.raises(ValueError, match="is not a URL of the config service: write https://host:port"):
        parse_control_url(url)


def test_urls() -> None:
    """The host comes without brackets, in lower case."""
    assert parse_control_url("https://[2001:DB8::1]:7443") == ("2001:db8::1", 7443)
    assert parse_control_url("https://Control.shop.example:443") == ("control.shop.example", 443)


def of(fields: dict[str, Any]) -> MeshConfig:
    return config_of({"version": 1, "mesh": "m", **fields})


def test_urls_at_the_bound() -> None:
    """URLS_MAX are taken, one more is a sentence."""
    urls = [f"https://c{number}:1" for number in range(URLS_MAX + 1)]
    taken = of({"control": {"urls": urls[:-1]}})
    assert taken.control is not None
    assert len(taken.control.urls) == URLS_MAX
    with pytest.raises(ConfigError, match=f"control.urls: has {URLS_MAX + 1} URLs; name at most {URLS_MAX}"):
        of({"control": {"urls": urls}})


def test_labels_and_zones_at_the_bound() -> None:
    """LABELS_MAX labels, LABEL_CHARS_MAX characters, for an instance and for an entry alike; one more is a sentence."""
    longest = "x" * LABEL_CHARS_MAX
    most = {f"{number}": longest for number in range(LABELS_MAX - 1)} | {longest: ""}
    for more, said in (
        ({"labels": {**most, "more": ""}}, f"has {LABELS_MAX + 1} labels; at most {LABELS_MAX} are possible"),
        ({"labels": {longest + "x": ""}}, f"with a name of {LABEL_CHARS_MAX + 1} characters; 1 to {LABEL_CHARS_MAX}"),
        ({"labels": {"a": longest + "x"}}, f"'a' with {LABEL_CHARS_MAX + 1} characters; at most {LABEL_CHARS_MAX}"),
        ({"zone": longest + "x"}, f"zone: has {LABEL_CHARS_MAX + 1} characters; at most {LABEL_CHARS_MAX}"),
    ):
        for wrap in (instance, entry):
            assert wrap({"labels": most, "zone": longest}).mesh == "m"
            with pytest.raises(ConfigError, match=said):
                wrap(more)


def instance(fields: dict[str, Any]) -> MeshConfig:
    return of({"instance": fields})


def entry(fields: dict[str, Any]) -> MeshConfig:
    return of({"services": {"a": {"endpoints": [{"static": [{"address": "127.0.0.1:1", **fields}]}]}}})


def test_every_field_has_its_part() -> None:
    """A top-level field is read once, or it is policy; `version` is about the file."""
    assert {*BOOTSTRAP, "version", "defaults", "services", "gateways"} == set(MeshConfig.model_fields)
    assert len(set(BOOTSTRAP)) == len(BOOTSTRAP)
