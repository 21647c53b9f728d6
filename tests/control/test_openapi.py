"""The description of the API: complete, valid, and what is really answered."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from meshlib.control.openapi import OPERATIONS, document, statuses

from .config_service import Follower, Service, played
from .test_api import BODIES, asked

METHODS = {"get", "put", "post", "delete", "patch", "options", "head", "trace"}


def schema_of(described: dict[str, Any], content: dict[str, Any], media: str = "application/json") -> dict[str, Any]:
    """A schema that can be used by itself."""
    return {**content[media]["schema"], "components": described["components"]}


def test_every_operation_is_described():
    """Each with its caller, its body, its reply and every error that it may be answered with."""
    described = document()
    found = {(path, method) for path, item in described["paths"].items() for method in item if method in METHODS}
    assert found == {(operation.path, operation.method.lower()) for operation in OPERATIONS}
    for operation in OPERATIONS:
        one = described["paths"][operation.path][operation.method.lower()]
        assert one["responses"].keys() == {"200", "400", *map(str, statuses(operation))}
        assert "text/plain" in one["responses"]["400"]["content"], "the connection's own answer"
        for status, response in one["responses"].items():
            assert ("Retry-After" in response.get("headers", {})) == (status in ("429", "503"))
        assert bool(one["security"]) == (operation.role != "anyone")
        assert ("requestBody" in one) == (operation.body is not None)
        assert ("{" in operation.path) == any(given["in"] == "path" for given in one.get("parameters", []))


def test_it_is_json_and_every_reference_leads_somewhere():
    """No model is named that is not there, none is there for nothing, and every schema is one."""
    text = json.dumps(document())
    described = json.loads(text)
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert named == set(described["components"]["schemas"])
    for schema in described["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("does", sorted(BODIES))
def test_the_examples_are_what_is_described(does: str):
    """A request that is served is one by the description."""
    described = document()
    operation = next(one for one in OPERATIONS if one.does == does)
    body = described["paths"][operation.path][operation.method.lower()]["requestBody"]
    jsonschema.validate(BODIES[does], schema_of(described, body["content"]))


def test_what_is_answered_is_what_is_described(tmp_path: Path):
    """Every answer, of 200 and of refusals, has the media type and the form that is said."""

    async def scenario(service: Service) -> None:
        described = document()
        server = Follower(service, "inventory", "i1")
        await server.register("10.0.0.1:80")
        await Follower(service, "orders", "o1", "inventory.default").poll()
        made = await service.operating().told("POST", "/v1/tokens", {"service": "orders.default", "uses": 9})
        newcomer = service.client()
        newcomer.bearer = ".".join(made["token"].split(".")[:2])
        callers = [service.client(), service.client("inventory"), service.operating(), newcomer]
        seen = set()
        for operation in OPERATIONS:
            for caller in callers:
                reply = await asked(caller, operation)
                seen.add((operation.does, reply.status_code))
                said = described["paths"][operation.path][operation.method.lower()]["responses"]
                content, media = said[str(reply.status_code)]["content"], reply.headers["content-type"].split(";")[0]
                assert media in content, operation
                for header in ("ETag", "Retry-After"):
                    assert (header in reply.headers) == (header in said[str(reply.status_code)].get("headers", {}))
                if media != "text/plain":
                    jsonschema.validate(reply.json(), schema_of(described, content, media))
        served = {does for does, status in seen if status == 200}
        assert served == {one.does for one in OPERATIONS} - {"remove_token", "put_policy", "past_policy"}

    played(tmp_path, scenario)


def test_a_policy_is_put_in_the_place_of_a_named_one():
    """The description asks for If-Match, and has the statuses of what becomes of it."""
    put = document()["paths"]["/v1/policy"]["put"]
    (given,) = put["parameters"]
    assert (given["name"], given["in"], given["required"]) == ("If-Match", "header", True)
    assert {"412", "428", "500"} <= put["responses"].keys()
    assert [bool(re.fullmatch(given["schema"]["pattern"], value)) for value in ('"17"', "*", "17")] == [
        True,
        True,
        False,
    ]
    assert "ETag" in put["responses"]["200"]["headers"]


def test_it_is_there_for_those_who_may_ask(tmp_path: Path):
    """A process and the operator get it, nobody else."""

    async def scenario(service: Service) -> None:
        assert (await service.client("orders").told("GET", "/openapi.json"))["openapi"] == "3.1.0"
        assert (await service.operating().ask("GET", "/openapi.json")).json() == document()
        assert (await service.client().ask("GET", "/openapi.json")).status_code == 401

    played(tmp_path, scenario)
