"""The Gateway API's own cases: routing by `convert` and `explain`; what takes time, a share or an answer, by a gateway."""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
from collections.abc import Callable
from typing import Any

Entry = dict[str, Any]
SHARED = 500
"""Requests where a share of them is looked at (the standard's own number)."""
LIVE = ("retry", "timeout", "cors", "mirror", "response-header-modifier")


def documents(entry: Entry) -> list[Entry]:
    """The Gateways and routes of a case. A route whose parents were left out of the case has the only Gateway."""
    made, gateways = [], {}
    for route in entry["routes"]:
        namespace, parents = route.get("namespace", "default"), route.get("parentRefs") or [{"name": "gateway"}]
        metadata = {"name": route["name"], "namespace": namespace}
        if created := route.get("creationTimestamp"):
            metadata["creationTimestamp"] = created
        spec = {"parentRefs": parents, "hostnames": route.get("hostnames", []), "rules": route["rules"]}
        made.append({"kind": "HTTPRoute", "metadata": metadata, "spec": spec})
        for parent in parents:
            if parent.get("kind", "Gateway") == "Gateway":
                gateways[parent["name"], parent.get("namespace", namespace)] = None
    listeners = entry.get("listeners") or [{"name": "http", "port": 80, "protocol": "HTTP"}]
    for name, namespace in gateways:
        metadata = {"name": name, "namespace": namespace}
        made.append({"kind": "Gateway", "metadata": metadata, "spec": {"listeners": listeners}})
    return made


def case(entry: Entry) -> bool:
    """One request of a case."""
    import meshlib

    conversion = meshlib.convert("gateway-api", documents(entry))
    if entry["kind"] == "gateway" and entry["feature"] in LIVE:
        return asyncio.run(_lived(entry, conversion.mesh))
    request, expect = entry["request"], entry["expect"]
    host = request.get("host")
    explanation = meshlib.explain(
        conversion.config,
        (host or "").partition(":")[0] if entry["kind"] == "mesh" else None,
        method=request["method"],
        path=request["path"],
        headers=request["headers"],
        host=host,
    )
    return _as_expected(expect, explanation.to_dict())


def _as_expected(expect: Entry, found: Entry) -> bool:
    statuses = set(expect["status"])
    status = found["status"] or (200 if found["matched"] else 404)
    if status not in statuses:
        return False
    if expect["backend"] is not None:
        names = [each["service"].partition(".")[0] for each in found["backends"] if each["service"] and each["weight"]]
        if expect["backend"] not in names:
            return False
    wanted = expect.get("upstream_request") or {}
    headers = {name.lower(): value for name, value in found["request"]["headers"].items()}
    asked = {
        "path": lambda value: found["request"]["path"] == value,
        "host": lambda value: found["request"]["host"] == value,
        "method": lambda value: found["request"]["method"] == value,
        "headers": lambda value: all(headers.get(name.lower()) == text for name, text in value.items()),
        "absent_headers": lambda value: not {name.lower() for name in value} & headers.keys(),
    }
    if not all(asked[key](value) for key, value in wanted.items()):
        return False
    return "redirect" not in expect or _redirected(expect["redirect"], found["redirect"])


def _redirected(expect: Entry, found: Entry | None) -> bool:
    if found is None:
        return False
    port = expect.get("port")
    return (
        expect.get("host") in (None, found["hostname"])
        and expect.get("scheme") in (None, found["scheme"])
        and expect.get("path") in (None, found["path"])
        and (str(found["port"] or "") in ("", "80", "443") if port is None else str(found["port"] or "") == str(port))
    )


async def _lived(entry: Entry, mesh: Entry) -> bool:
    """The request through a gateway, to backends that do what the case says."""
    import httpx

    from meshlib import Mesh
    from meshlib.gateway import Gateway, GatewayHost, Outside
    from meshlib.transport.asgi import MeshAsgi

    seen: list[str] = []
    servers, services = [], {}
    for name, service in mesh["services"].items():
        server = await asyncio.start_server(_backend(entry, name, seen), "127.0.0.1", 0)
        servers.append(server)
        port = server.sockets[0].getsockname()[1]
        services[name] = {**service, "mtls": "disabled", "endpoints": [{"static": [f"127.0.0.1:{port}"]}]}
    with tempfile.TemporaryDirectory() as folder:
        config = {**mesh, "services": services, "state_dir": folder}
        async with Mesh("edge", config) as edge:
            app = Outside(MeshAsgi(Gateway(edge._engine, next(iter(mesh["gateways"]))), GatewayHost(edge._engine)))
            transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
                request = entry["request"]
                headers = dict(request["headers"], **({"host": request["host"]} if request.get("host") else {}))
                try:
                    for _ in range(SHARED if _shares(entry["expect"]) else 1):
                        response = await client.request(request["method"], request["path"], headers=headers)
                    for _ in range(100):
                        if _mirrored(entry["expect"], seen):
                            break
                        await asyncio.sleep(0.02)
                finally:
                    for server in servers:
                        server.close()
    return _answered(entry["expect"], response, seen)


def _shares(expect: Entry) -> list[tuple[str, float]]:
    """(backend, share) of the copies that are a share of the requests."""
    return [(each["backend"], each["percent"] / 100) for each in expect.get("mirrored_to", ()) if "percent" in each]


def _mirrored(expect: Entry, seen: list[str]) -> bool:
    """Copies at every backend that is to have them, as many as are to be (within 3 sigma)."""
    for name, share in _shares(expect):
        if abs(seen.count(name) - SHARED * share) > 3 * math.sqrt(SHARED * share * (1 - share)):
            return False
    return {each["backend"] for each in expect.get("mirrored_to", ())} <= set(seen)


def _backend(entry: Entry, service: str, seen: list[str]) -> Callable[..., Any]:
    """Echoes; fails as often as the case says; sleeps where the path says so."""
    script = entry.get("backend_script") or {}
    left = [int(script.get("fail_first_n", 0))]
    own = entry["expect"].get("backend_sets_response_headers") or {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ")[1].decode()
                seen.append(service.partition(".")[0])
                _, _, delay = path.partition("delay=")
                if delay:
                    await asyncio.sleep(float(delay.rstrip("s")))
                failing, left[0] = left[0] > 0, max(0, left[0] - 1)
                failure = script.get("failure", {})
                if failing and "delay_each_failed_attempt" in script:
                    await asyncio.sleep(_seconds(script["delay_each_failed_attempt"]))
                if failing and failure.get("connection_error"):
                    return
                status = failure.get("status", 200) if failing else 200
                body = json.dumps({"service": service, "path": path}).encode()
                lines = "".join(f"{name}: {value}\r\n" for name, value in own.items())
                writer.write(f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    return serve


def _seconds(text: str) -> float:
    from meshlib.config.units import parse_duration

    return parse_duration(text)


def _answered(expect: Entry, response: Any, seen: list[str]) -> bool:
    fields = {name.lower(): response.headers[name] for name in response.headers}
    if response.status_code not in expect["status"]:
        return False
    if expect["backend"] is not None and response.status_code == 200 and response.content:
        if json.loads(response.content)["service"].partition(".")[0] != expect["backend"]:
            return False
    wanted = {name.lower(): value for name, value in (expect.get("response_headers") or {}).items()}
    either = {name.lower(): value for name, value in (expect.get("response_header_one_of") or {}).items()}
    absent = {name.lower() for name in expect.get("response_absent_headers") or ()}
    return (
        all(_same(fields.get(name), value) for name, value in wanted.items())
        and all(any(_same(fields.get(name), value) for value in values) for name, values in either.items())
        and not absent & fields.keys()
        and _mirrored(expect, seen)
    )


def _same(found: str | None, wanted: str) -> bool:
    parts = [sorted(part.strip().lower() for part in text.split(",")) for text in (found or "", wanted)]
    return found is not None and parts[0] == parts[1]


def validation(entry: Entry) -> bool:
    """The input of a case in the smallest route that it can stand in."""
    import meshlib

    given = entry["input"]
    spec = {"parentRefs": [{"name": "gateway"}], "rules": [_rule(given)]}
    for key in ("rules", "hostnames"):
        if given.get(key):
            spec[key] = given[key]
    route = {"kind": "HTTPRoute", "metadata": {"name": "route"}, "spec": spec}
    listeners = [{"name": "http", "port": 80, "protocol": "HTTP"}]
    gateway = {"kind": "Gateway", "metadata": {"name": "gateway"}, "spec": {"listeners": listeners}}
    try:
        meshlib.convert("gateway-api", [gateway, route])
    except meshlib.ConfigError:
        return not entry["valid"]
    return bool(entry["valid"])


def _rule(given: Entry) -> Entry:
    rule: Entry = {}
    if "path" in given:
        rule["matches"] = [{"path": given["path"]}]
    if "routeFilter" in given:
        rule["filters"] = [given["routeFilter"]]
    if "pathModifier" in given:
        rule["matches"] = [{"path": {"type": "PathPrefix", "value": "/x"}}]
        rule["filters"] = [{"type": "URLRewrite", "urlRewrite": {"path": given["pathModifier"]}}]
    for name in ("corsfilter", "cors"):
        if name in given:
            rule["filters"] = [{"type": "CORS", "cors": given[name]}]
    if "routeTimeouts" in given:
        rule["timeouts"] = given["routeTimeouts"]
    return rule


CHECKS: dict[str, Callable[[Entry], bool | None]] = {
    "httproute_cases.cases": case,
    "httproute_validation.cases": validation,
}
"""Every name of this part."""
