"""Every kind of mistake that the schema finds: exact place, path and sentence; and the JSON Schema."""

from __future__ import annotations

import json

import jsonschema
import pytest
from pydantic import BaseModel

from meshlib.config import json_schema, parse_config
from meshlib.config.model import MeshConfig
from meshlib.config.reader import read
from meshlib.config.schema import NOT_ENFORCED
from meshlib.errors import ConfigError

from .documents import BROKEN, FIVE_MISTAKES, FULL

HEAD = "version: 1\nmesh: m\n"


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "mesh.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_five_mistakes_in_one_pass() -> None:
    """Unknown field, bad duration, bad enum, bad port, unknown subset: all five, in the order of the file."""
    assert problems(FIVE_MISTAKES) == [f"{place}: {sentence}" for place, sentence in BROKEN.items()]


def service(text: str) -> str:
    return f"{HEAD}services:\n  a:\n    {text}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("version: 1\n", "1:1: mesh: is required"),
        ("mesh: m\n", "1:1: version: is required"),
        ("version: 1.10\nmesh: m\n", "1:10: version: must be the number 1, the version of this file format, not 1.1"),
        ("version: '1'\nmesh: m\n", "1:10: version: must be the number 1, the version of this file format, not '1'"),
        ("version: true\nmesh: m\n", "1:10: version: must be the number 1, the version of this file format, not true"),
        ("version: 1\nmesh: 12\n", "2:7: mesh: must be text, not 12; put it in quotes"),
        ("version: 1\nmesh: Shop\n", "2:7: mesh: 'Shop' is not a name: up to 63 lower-case letters, digits and hyphens, such as orders"),
        (HEAD + "meshh: x\n", "3:1: meshh: unknown field (did you mean 'mesh'?)"),
        (HEAD + "zzz: x\n", "3:1: zzz: unknown field"),
        (HEAD + "'a b': x\n", "3:1: ['a b']: unknown field"),
        (HEAD + "trust_domain: A.dev\n", "3:15: trust_domain: 'A.dev' is not a trust domain: lower-case letters, digits, dots, hyphens and underscores, such as shop.dev"),
        (HEAD + "trust_domain: shop.example\n", "3:15: trust_domain: 'shop.example' must end in .dev, because identity.source is dev: write m.dev or remove it"),
        (HEAD + "identity: {source: spiffe}\n", "3:20: identity.source: `spiffe` is not enforced by this release of meshlib; use dev or control"),
        (HEAD + "admin: {listen: here}\n", "3:17: admin.listen: 'here' is not an address: write host:port or [ipv6]:port, such as 127.0.0.1:8080"),
        (HEAD + "telemetry: {tracing: {sample: 0.1}}\n", "3:31: telemetry.tracing.sample: 0.1 is not a share: write a percentage from 0% to 100%, such as 10% or 0.01%"),
        (HEAD + "defaults: 3\n", "3:11: defaults: must be a mapping of fields, not 3"),
        (HEAD + "defaults:\n", "3:10: defaults: is empty; give it a value or remove the line"),
        (HEAD + "defaults: {timeout: 10}\n", "3:21: defaults.timeout: 10 is not a duration: write up to four whole numbers, each with h, m, s or ms, such as 250ms"),
        (HEAD + "defaults: {timeout: 0s}\n", "3:21: defaults.timeout: '0s' is no time at all: write at least 1ms"),
        (HEAD + "defaults: {limits: {max_request_body: lots}}\n", "3:39: defaults.limits.max_request_body: 'lots' is not a size: write a number of bytes above 0, or with kB, MB, GB, KiB, MiB or GiB, such as 64KiB"),
        (HEAD + "defaults: {limits: {max_retries: 11}}\n", "3:34: defaults.limits.max_retries: must be a whole number from 0 to 10, not 11"),
        (HEAD + "defaults: {limits: {max_retries: true}}\n", "3:34: defaults.limits.max_retries: must be a whole number from 0 to 10, not true"),
        (HEAD + "defaults: {mtls: permissive}\n", "3:18: defaults.mtls: `permissive` is not enforced by this release of meshlib; use strict or disabled"),
        (HEAD + "defaults: {mtls: of}\n", "3:18: defaults.mtls: 'of' is not one of strict, disabled"),
        (HEAD + "defaults: {load_balancer: {policy: maglev}}\n", "3:36: defaults.load_balancer.policy: `maglev` is not enforced by this release of meshlib; use peak_ewma or least_request or round_robin or random"),
        (HEAD + "defaults: {retries: {retry_on: [reset, timeout]}}\n", "3:40: defaults.retries.retry_on[1]: 'timeout' is not a reason to retry: use connect_failure, reset, gateway_error, 5xx, a status from 400 to 599, or a gRPC code such as unavailable"),
        (HEAD + "defaults: {retries: {retry_on: reset}}\n", "3:32: defaults.retries.retry_on: must be a list, not 'reset'"),
        (HEAD + "defaults: {retries: {back_off: {multiplier: 0}}}\n", "3:45: defaults.retries.back_off.multiplier: must be a number from 0.001 to 1000, not 0"),
        (HEAD + "defaults: {retries: {back_off: {base: 1s}}}\n", "3:33: defaults.retries.back_off.base: unknown field"),
        (HEAD + "services: [a]\n", "3:11: services: must be a mapping, not a list"),
        (HEAD + "services: {A_b: {}}\n", "3:12: services.A_b: 'A_b' is not a service name: write name or name.namespace in lower-case letters, digits and hyphens"),
        (HEAD + "services: {a.b.c: {}}\n", "3:12: services.a.b.c: 'a.b.c' is not a service name: write name or name.namespace in lower-case letters, digits and hyphens"),
        (service("protocol: smtp"), "5:15: services.a.protocol: 'smtp' is not one of http, grpc"),
        (service("allow_routes_from: [gateway/edge]"), "5:25: services.a.allow_routes_from[0]: 'gateway/edge' is not a gateway of this file"),
        (service("endpoints: [{}]"), "5:17: services.a.endpoints[0]: must have exactly one of static, file, dns, srv, registry"),
        (service("endpoints: [{registry: shop}]\ncontrol: {urls: ['https://c:1']}"), "5:28: services.a.endpoints[0].registry: must be a mapping of fields, not 'shop'"),
        (service("endpoints: [{registry: {tag: v1}}]\ncontrol: {urls: ['https://c:1']}"), "5:29: services.a.endpoints[0].registry.tag: unknown field"),
        (service("control: {}"), "5:5: services.a.control: unknown field"),
        (service("endpoints: [{static: [8080]}]"), "5:27: services.a.endpoints[0].static[0]: must be a mapping of fields, not 8080"),
        (service("endpoints: [{static: [{weight: 1}]}]"), "5:27: services.a.endpoints[0].static[0].address: is required"),
        (service("endpoints: [{static: [{address: 'localhost:1', lables: {}}]}]"), "5:52: services.a.endpoints[0].static[0].lables: unknown field (did you mean 'labels'?)"),
        (service("endpoints: [{static: [{address: 'localhost:1', weight: 129}]}]"), "5:60: services.a.endpoints[0].static[0].weight: must be a whole number from 1 to 128, not 129"),
        (service("subsets: {v1: {version: 1}}"), "5:29: services.a.subsets.v1.version: must be text, not 1; put it in quotes"),
        (service("routes: [{}]"), "5:14: services.a.routes[0].name: is required"),
        (service("routes: [{name: x, backends: []}]"), "5:34: services.a.routes[0].backends: must not be empty"),
        (service("routes: [{name: x, backends: [{weight: -1}]}]"), "5:44: services.a.routes[0].backends[0].weight: must be a whole number from 0 to 1000000, not -1"),
        (service("routes: [{name: x, idempotent: yes}]"), "5:36: services.a.routes[0].idempotent: must be true or false, not 'yes'"),
        (service("routes: [{name: x, matches: [{path: /a}]}]"), "5:41: services.a.routes[0].matches[0].path: must be a mapping of fields, not '/a'"),
        (service("routes: [{name: x, matches: [{path: {exact: /a, prefix: /b}}]}]"), "5:41: services.a.routes[0].matches[0].path: must have exactly one of exact, prefix, regular_expression"),
        (service("routes: [{name: x, matches: [{path: {prefix: a}}]}]"), "5:50: services.a.routes[0].matches[0].path.prefix: 'a' is not a path to match: it begins with / and has no //, /./, /../, %2F, query or fragment"),
        (service("routes: [{name: x, matches: [{method: get}]}]"), "5:43: services.a.routes[0].matches[0].method: 'get' is not a method: write it in capitals, such as GET"),
        (service("routes: [{name: x, matches: [{headers: {'a b': c}}]}]"), "5:45: services.a.routes[0].matches[0].headers['a b']: 'a b' is not a header name (RFC 9110 token)"),
        (service("routes: [{name: x, matches: [{headers: {x-a: 1}}]}]"), "5:50: services.a.routes[0].matches[0].headers.x-a: must be a mapping of fields, not 1"),
        (service("routes: [{name: x, matches: [{headers: {x-a: {}}}]}]"), "5:50: services.a.routes[0].matches[0].headers.x-a: must have exactly one of exact, prefix, suffix, contains, regular_expression, present"),
        (service("routes: [{name: x, matches: [{headers: {x-a: a, X-A: b}}]}]"), "5:44: services.a.routes[0].matches[0].headers: names 'x-a' twice; header names are the same in any case of letters"),
        (service("routes: [{name: x, matches: [{headers: {x-a: {presnt: true}}}]}]"), "5:51: services.a.routes[0].matches[0].headers.x-a.presnt: unknown field (did you mean 'present'?)"),
    ],
)  # fmt: skip
def test_each_mistake(text: str, problem: str) -> None:
    """One mistake is one problem: file:line:column: path: sentence."""
    assert problems(text) == [f"mesh.yaml:{problem}"]


@pytest.mark.parametrize("word", sorted(NOT_ENFORCED))
def test_not_enforced(word: str) -> None:
    """A word of the contract that this release does not enforce is an error that says so, never ignored."""
    message = f"`{word}` is not enforced by this release of meshlib; remove it"
    assert problems(service(f"{word}: {{}}")) == [f"mesh.yaml:5:5: services.a.{word}: {message}"]


def fields(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def test_enforced_words_are_not_in_the_table() -> None:
    """No field of the models is called unenforced."""
    schema = json_schema()
    words = {name for node in (schema, *schema["$defs"].values()) for name in node.get("properties", ())}
    assert fields(MeshConfig) <= words
    assert not words & NOT_ENFORCED


def test_json_schema_is_valid_and_fits() -> None:
    """The JSON Schema is one, accepts the full document, and refuses what the models refuse."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    full = read(FULL, "f").data
    validator.validate(full)
    json.dumps(schema)
    for text in (FIVE_MISTAKES, HEAD + "mirror: {}", service("endpoints: [{}]"), HEAD + "services: {A: {}}", "mesh: m"):
        assert not validator.is_valid(read(text, "f").data), text


def test_every_field_is_described() -> None:
    """Editors show a sentence for every field; units and built-in values are in it."""
    schema = json_schema()
    for node in (schema, *schema["$defs"].values()):
        for name, field in node.get("properties", {}).items():
            target = schema["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else {}
            assert field.get("description") or target.get("description"), name
    limits = schema["$defs"]["Limits"]["properties"]["max_timeout"]["description"]
    assert limits == "Duration: the longest timeout. Built-in: 30s (three times the built-in timeout)."


def test_json_schema_is_the_callers() -> None:
    """Changing the returned dict changes nothing for the next caller."""
    json_schema()["properties"].clear()
    assert json_schema()["properties"]
