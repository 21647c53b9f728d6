"""One rule of an HTTPRoute or a GRPCRoute: what it matches, and the fields of a route here.

What the standard's own validation refuses is an error here too (apis/v1/httproute_types.go).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.fields import ORIGIN_PATTERN
from ..config.route_actions import MIRRORS_MAX
from ..config.units import format_duration, parse_duration

if TYPE_CHECKING:
    from .foreign import Field

HEADER = r"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,256}"
HOSTNAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
DURATION = r"([0-9]{1,5}(h|m|s|ms)){1,4}"
PATH = r"/([-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})*"
RETRIES_MAX = 10
"""Retries of a call; a higher number counts as this."""
BACK_OFF_GROWTH = 10
"""The longest wait before a retry is so many times the first (Envoy)."""
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
NO_MORE_THAN_ONCE = ("RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "CORS")
FILTERS = {
    "RequestHeaderModifier": "requestHeaderModifier",
    "ResponseHeaderModifier": "responseHeaderModifier",
    "RequestMirror": "requestMirror",
    "RequestRedirect": "requestRedirect",
    "URLRewrite": "urlRewrite",
    "CORS": "cors",
    "ExternalAuth": "externalAuth",
    "ExtensionRef": "extensionRef",
}
NOT_FORWARDED = {"status": 500, "body": "this rule has no backend that can be used"}


@dataclass(frozen=True)
class ForeignMatch:
    """`written`: as mesh.yaml has it. `rank`: the more specific, the lower (Gateway API, "precedence")."""

    written: dict[str, Any]
    rank: tuple[int, ...]
    prefix: bool


def matches_of(rule: Field, grpc: bool) -> list[ForeignMatch]:
    """What a rule matches; a rule that does not say it matches everything."""
    found = [(_grpc_match if grpc else _http_match)(each) for each in rule["matches"]]
    everything = {} if grpc else {"path": {"prefix": "/"}}
    return found or [ForeignMatch(everything, (0, 0) if grpc else (2, -1, 1, 0, 0), True)]


def _http_match(of: Field) -> ForeignMatch:
    path = of["path"]
    kind = path["type"].one_of(("Exact", "PathPrefix", "RegularExpression"), "PathPrefix")
    value = path["value"].text("/", r"(?s).*" if kind == "RegularExpression" else PATH, 1024)
    if kind != "RegularExpression":
        _check_path(path["value"], value)
    written: dict[str, Any] = {}
    if kind == "Exact":
        written["path"], rank = {"exact": value}, (0, -len(value))
    elif kind == "RegularExpression":
        written["path"], rank = {"regular_expression": value}, (1, -len(value))
        path["type"].note("approximated", "RE2, for the whole path, after exact paths and before prefixes")
    else:
        written["path"], rank = {"prefix": value.rstrip("/") or "/"}, (2, -len(value.rstrip("/") or "/"))
    if of["method"]:
        written["method"] = of["method"].one_of(METHODS)
    headers, queries = _conditions(of["headers"], HEADER), _conditions(of["queryParams"], r"(?s).{1,256}")
    if headers:
        written["headers"] = headers
    if queries:
        written["query_params"] = queries
    return ForeignMatch(
        written, (*rank, 0 if "method" in written else 1, -len(headers), -len(queries)), kind == "PathPrefix"
    )


def _grpc_match(of: Field) -> ForeignMatch:
    method = of["method"]
    kind = method["type"].one_of(("Exact", "RegularExpression"), "Exact")
    service, name = method["service"].text("", most=1024), method["method"].text("", most=1024)
    if method and not (service or name):
        method.error("one or both of service and method must be there")
    written: dict[str, Any] = {}
    if kind == "RegularExpression":
        pattern = f"/{service or '[^/]+'}/{name or '[^/]+'}"
        written["path"] = {"regular_expression": pattern}
        method.note("approximated", "a pattern of the path, RE2, for the whole of it")
    elif method:
        written["grpc"] = {key: value for key, value in (("service", service), ("method", name)) if value}
    headers = _conditions(of["headers"], HEADER)
    if headers:
        written["headers"] = headers
    return ForeignMatch(written, (-len(service), -len(name), -len(headers)), False)


def _check_path(of: Field, value: str) -> None:
    for part in ("//", "/./", "/../", "%2f", "%2F", "#"):
        if part in value:
            of.error(f"must not contain {part!r}")
    for part in ("/..", "/."):
        if value.endswith(part):
            of.error(f"must not end with {part!r}")


def _conditions(of: Field, name_pattern: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in of:
        name = each["name"].text("", name_pattern)
        kind = each["type"].one_of(("Exact", "RegularExpression"), "Exact")
        value = each["value"].text()
        if name in found:
            each.error(f"{name!r} is there twice")
        elif name_pattern == HEADER and name.lower() in {known.lower() for known in found}:
            each.note("dropped", "the same name, in other letters, is there before: the standard takes the first")
            continue
        found[name] = {"exact": value} if kind == "Exact" else {"regular_expression": value}
    return found


def filters_of(rule: Field, matches: list[ForeignMatch], backend: bool) -> dict[str, Any]:
    """The fields that the filters of a rule, or of one backend, make. `mirror`: (service field, percent) each."""
    made: dict[str, Any] = {}
    seen: list[str] = []
    for each in rule["filters"]:
        kind = each["type"].one_of(tuple(FILTERS))
        for other, field in FILTERS.items():
            if other == kind and not each[field]:
                each.error(f"{field} must be there for the type {kind}")
            elif other != kind and each[field]:
                each.error(f"{field} must not be there for the type {kind}")
        if kind in seen and kind in NO_MORE_THAN_ONCE:
            each.error(f"{kind} cannot be repeated")
        seen.append(kind)
        if each[FILTERS[kind]]:
            _filter(kind, each[FILTERS[kind]], made, matches)
    if "RequestRedirect" in seen and "URLRewrite" in seen:
        rule["filters"].error("has RequestRedirect and URLRewrite: only one of them is possible")
    if len(made.get("mirror", ())) > MIRRORS_MAX:
        rule["filters"].error(f"has {len(made['mirror'])} mirrors; at most {MIRRORS_MAX} are possible here")
    if backend:
        for field in ("mirror", "cors"):
            if made.pop(field, None) is not None:
                rule["filters"].note("dropped", f"{field} is of a whole route here, not of one backend")
    return made


def _filter(kind: str, of: Field, made: dict[str, Any], matches: list[ForeignMatch]) -> None:
    if kind == "RequestHeaderModifier":
        made["request_headers"] = _headers(of)
    elif kind == "ResponseHeaderModifier":
        made["response_headers"] = _headers(of)
    elif kind == "RequestMirror":
        made.setdefault("mirror", []).append((of["backendRef"], _percent(of)))
    elif kind == "RequestRedirect":
        made["request_redirect"] = _redirect(of, matches)
    elif kind == "URLRewrite":
        rewrite = {
            "hostname": of["hostname"].text("", HOSTNAME, 253),
            "path": _path_modifier(of["path"], matches),
        }
        made["url_rewrite"] = {name: value for name, value in rewrite.items() if value}
    elif kind == "CORS":
        made["cors"] = _cors(of)
    elif kind == "ExternalAuth":
        of.error("external authorization is not enforced by this release, and must not be left out")
    else:
        of.note("dropped", "an extension that is not known: the rule answers 500, as the standard asks")
        made["unknown"] = True


def _headers(of: Field) -> dict[str, Any]:
    edits: dict[str, Any] = {}
    for word in ("set", "add"):
        values: dict[str, str] = {}
        for each in of[word]:
            name = each["name"].text("", HEADER)
            if name.lower() in {known.lower() for known in values}:
                each.error(f"{name!r} is there twice")
            values[name] = each["value"].text()
        if values:
            edits[word] = values
    removed = [each.text("", HEADER) for each in of["remove"]]
    if len({name.lower() for name in removed}) < len(removed):
        of["remove"].error("has a name twice")
    if removed:
        edits["remove"] = removed
    return edits


def _redirect(of: Field, matches: list[ForeignMatch]) -> dict[str, Any]:
    made = {
        "scheme": of["scheme"].one_of(("http", "https")),
        "hostname": of["hostname"].text("", HOSTNAME, 253),
        "path": _path_modifier(of["path"], matches),
        "port": of["port"].whole(1, 65_535),
        "status_code": of["statusCode"].whole(301, 308),
    }
    if made["status_code"] not in (None, 301, 302, 303, 307, 308):
        of["statusCode"].error("must be 301, 302, 303, 307 or 308")
    return {name: value for name, value in made.items() if value}


def _path_modifier(of: Field, matches: list[ForeignMatch]) -> dict[str, str]:
    if not of:
        return {}
    kind = of["type"].one_of(("ReplaceFullPath", "ReplacePrefixMatch"), "ReplaceFullPath")
    own, other = ("replaceFullPath", "replacePrefixMatch")
    if kind == "ReplacePrefixMatch":
        own, other = other, own
    if not of[own]:
        of.error(f"{own} must be there for the type {kind}")
    if of[other]:
        of.error(f"{other} must not be there for the type {kind}")
    if kind == "ReplacePrefixMatch" and not (len(matches) == 1 and matches[0].prefix):
        of.error("replacePrefixMatch needs exactly one match, with a PathPrefix")
    value = of[own].text("", most=1024)
    field = "replace_full_path" if kind == "ReplaceFullPath" else "replace_prefix_match"
    return {field: value if value.startswith("/") else f"/{value}"}


def _percent(of: Field) -> str:
    if of["percent"] and of["fraction"]:
        of.error("only one of percent and fraction is possible")
    if of["fraction"]:
        above = of["fraction"]["numerator"].whole(0, 2**31 - 1, 0) or 0
        below = of["fraction"]["denominator"].whole(1, 2**31 - 1, 100) or 100
        if above > below:
            of["fraction"].error("numerator must not be above denominator")
            return "100%"
        return f"{100 * above / below:.6g}%"
    percent = of["percent"].whole(0, 100, 100)
    return f"{100 if percent is None else percent}%"


def _cors(of: Field) -> dict[str, Any]:
    origins = [each.text("*", rf"\*|(?=https?://){ORIGIN_PATTERN}", 253) for each in of["allowOrigins"]]
    methods = [each.one_of((*METHODS, "*")) for each in of["allowMethods"]]
    for field, values in (("allowOrigins", origins), ("allowMethods", methods)):
        if "*" in values and len(values) > 1:
            of[field].error("has * beside others")
    made: dict[str, Any] = {
        "allow_origins": origins,
        "allow_methods": methods,
        "allow_headers": [each.text("", rf"\*|{HEADER}") for each in of["allowHeaders"]],
        "expose_headers": [each.text("", rf"\*|{HEADER}") for each in of["exposeHeaders"]],
    }
    of["allowCredentials"].of.asked(of["allowCredentials"].path)
    if of["allowCredentials"].value is True:
        made["allow_credentials"] = True
    if of["maxAge"]:
        made["max_age"] = f"{of['maxAge'].whole(1, 2**31 - 1, 5)}s"
    return {name: value for name, value in made.items() if value}


def attempts_of(rule: Field) -> dict[str, Any]:
    """`timeout` and `retries`, in seconds and numbers: see `gateway_api.within_limits`."""
    whole_s, each_s = (_duration(rule["timeouts"][field]) for field in ("request", "backendRequest"))
    if whole_s and each_s and each_s > whole_s:
        rule["timeouts"]["backendRequest"].error("must not be longer than request")
    made: dict[str, Any] = {}
    if whole_s is not None:
        made["timeout"] = whole_s
    retries: dict[str, Any] = {}
    if each_s:
        retries["per_try_timeout"] = format_duration(each_s)
        made["at_least"] = each_s
    retry = rule["retry"]
    if retry:
        attempts = retry["attempts"].whole(0, 1000, 1) or 0
        retries["max_retries"] = min(attempts, RETRIES_MAX)
        if attempts > RETRIES_MAX:
            retry["attempts"].note("approximated", f"{RETRIES_MAX} are the most")
        codes = [each.whole(400, 599) for each in retry["codes"]]
        retries["retry_on"] = [code for code in codes if code is not None] + ["connect_failure", "reset"]
        if backoff := _duration(retry["backoff"]):
            longest = backoff * BACK_OFF_GROWTH
            retries["back_off"] = {"base_interval": format_duration(backoff), "max_interval": format_duration(longest)}
            made["at_least"] = made.get("at_least", 0.0) + backoff
        retry.note("approximated", "within the retry budget; what is not idempotent only where it was not processed")
    if retries:
        made["retries"] = retries
    return made


def _duration(of: Field) -> float | None:
    text = of.text("", DURATION, 32)
    return parse_duration(text) if text else None


def session_of(rule: Field) -> dict[str, Any]:
    """`session_persistence`."""
    of = rule["sessionPersistence"]
    if not of:
        return {}
    name = of["sessionName"].text("meshlib-session", HEADER, 128)
    if of["type"].one_of(("Cookie", "Header"), "Cookie") == "Header":
        return {"session_persistence": {"header": {"name": name}}}
    cookie: dict[str, Any] = {"name": name}
    kind = of["cookieConfig"]["lifetimeType"].one_of(("Permanent", "Session"), "Session")
    lifetime = _duration(of["absoluteTimeout"])
    if kind == "Permanent" and lifetime is None:
        of.error("a Permanent cookie needs an absoluteTimeout")
    if kind == "Permanent" and lifetime:
        cookie["ttl"] = format_duration(lifetime)
    elif lifetime:
        of["absoluteTimeout"].note("dropped", "a cookie of a session ends with the browser's")
    if of["idleTimeout"]:
        of["idleTimeout"].note("dropped", "a session has no idle timeout here")
    return {"session_persistence": {"cookie": cookie}}


def is_pattern(hostname: str) -> bool:
    """Is it a name, or *. and a name, as hostnames of routes and listeners are? An IP address is none."""
    is_name = re.fullmatch(rf"(\*\.)?{HOSTNAME}", hostname) is not None and len(hostname) <= 253
    return is_name and re.fullmatch(r"[0-9.]+", hostname) is None
