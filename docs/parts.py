"""The generated parts of every page but mesh-yaml.md, each read from the code that it speaks of.

A constant is a bound when it is a public number of the package; what is a number and no bound is in `_NO_BOUNDS`.
A bound says in its docstring what happens at it; where it has none, `_AT_THE_BOUND` does. One that says nothing in
either place fails the generation, with its name.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click

import meshlib
from meshlib import errors, stacks
from meshlib.cli import meshlib as command_line
from meshlib.telemetry.families import FAMILIES
from meshlib.transport.httpx_client import REFUSED
from meshlib.transport.httpx_errors import leaf_class
from meshlib.transport.limits import HttpLimits

DOCS = Path(__file__).resolve().parent
PACKAGE = Path(meshlib.__file__).parent

_NO_BOUNDS = {
    "ALARM_AT", "ALIKE", "BACKDATE_S", "BODY_PIECE", "LINGER_STEP_S", "SIMILAR",
     "CLIENT_FAILED_FROM", "DECAY_S", "ENCODED", "FAILURE_S", "FOREVER", "LARGE_MEMBER_CHARS",
    "LOCATION", "NO", "NOT_FOUND", "POLICY_VIOLATION", "REFUSED", "RENEW_AT", "RENEW_JITTER", "SERVER_FAILED_FROM",
    "SET_COOKIE", "SLICES", "STALL_S", "STEP", "UNEQUAL", "UNKNOWN_COST",
}  # fmt: skip
_AT_THE_BOUND = {
    "ATTEMPT_MAX": "A higher attempt number in `x-meshlib-attempt` counts as this one.",
    "BACKLOG": "Connections that wait to be accepted; the kernel refuses or delays the next.",
    "CRITICALITY_CHARS_MAX": "A longer `x-meshlib-criticality` is as if it were absent.",
    "EJECTION_TIME_MAX_S": "An ejection lasts no longer, however often the endpoint was ejected (Envoy).",
    "DESCRIPTION_CHARS_MAX": "The text of a span's error status is cut here.",
    "PATH_CHARS_MAX": "The path in a span is cut here.",
    "PeerProtocol.BODY_BYTES_PER_S_MIN": "Bytes per second of a request body, over each stretch; a slower one is 408.",
    "PeerProtocol.BODY_STRETCH_S": "Seconds over which the speed of a request body is measured.",
    "PeerProtocol.CONNECTIONS_PER_PEER_MAX": "Connections from one address to one process; one more is closed at once.",
    "PeerProtocol.FIELDS_MAX": "Header fields of a request, trailers counted in; one more is 431.",
    "PeerProtocol.HANDSHAKE_TIMEOUT_S": "Seconds for the TLS handshake; then the connection is closed.",
    "PeerProtocol.HEAD_BYTES_MAX": "Bytes of the request line and header fields; more is 431.",
    "PeerProtocol.HEAD_TIMEOUT_S": "Seconds for the head of a request; then 408. A new connection that sends nothing "
    "is closed.",
    "PeerProtocol.KEEP_ALIVE_S": "Seconds that a connection may lie idle after a response; then it is closed.",
    "PeerProtocol.PIPELINED_MAX": "Requests that wait behind the one being served, on one connection; one more is 400.",
    "PeerProtocol.TARGET_BYTES_MAX": "Bytes of the request target; more is 414.",
    "PeerProtocol.WRITE_BYTES_PER_S_MIN": "Bytes per second of a response that a peer must take, or is cut off.",
    "PeerProtocol.WRITE_STRETCH_S": "Seconds over which the speed of a slow reader is measured.",
    "STOP_WITHIN_S": "Seconds that `close` waits for the background thread.",
    "TRACESTATE_MEMBERS_MAX": "A `tracestate` with more members is discarded.",
    "registered.SHARE_MAX": "A report that takes a larger share of the endpoints is believed only when it comes twice.",
    "admin.REQUEST_BYTES_MAX": "Bytes of a request to the admin port that are read; it just ends there.",
    "admin.THREADS_MAX": "Requests to the admin port at once; one more is closed at once.",
    "admin.TIMEOUT_S": "Seconds that one request to the admin port may take.",
    "handlers.MESSAGE_CHARS_MAX": "The sentence about one parameter in a 422 is cut here.",
    "refusal.MESSAGE_CHARS_MAX": "The message in a problem document is cut here.",
    "HttpLimits.head_bytes": "Bytes of a reply's status line and header fields, and again of its trailers; more is "
    "TransportError, cause `too_large`.",
    "HttpLimits.fields": "Header fields of a reply, and again trailer fields; more is cause `too_large`.",
    "HttpLimits.interim": "1xx replies before the final one; one more is cause `protocol`.",
    "HttpLimits.body_bytes": "A reply's body that is collected in memory; more is cause `too_large`.",
}
_AREAS = {
    "transport": "HTTP, sockets and serving",
    "policy": "Decisions",
    "identity": "Identity",
    "config": "mesh.yaml",
    "discovery": "Following the config service",
    "control": "The config service",
    "telemetry": "Telemetry",
    "": "The mesh itself",
    "interop": "Other libraries",
    "runtime": "Simulation",
}
_ENVIRONMENT = {
    "MESHLIB_ADVERTISE": "The address that others reach this server by, and that is registered. Default: where it "
    "listens.",
    "MESHLIB_CONFIG": "The mesh.yaml, or a directory of them. Default: `./mesh.yaml`. An argument wins.",
    "MESHLIB_CONTROL_URLS": "URLs of the config service, by comma. Wins over `control.urls` of mesh.yaml.",
    "MESHLIB_INSTANCE": "The name of this process: `service.instance.id` of exported spans, and what it registers as. "
    "Default: a random id.",
    "MESHLIB_LABELS": "Labels that this process registers with, such as `version=v2,track=canary`. Wins over "
    "`instance.labels`, as a whole.",
    "MESHLIB_LOG": "Level of the log that `mesh.run` sets up. Default: `INFO`. An unknown level ends the start.",
    "MESHLIB_OPERATOR_TOKEN_FILE": "A file with the operator's token, for the command line. `--token-file` wins.",
    "MESHLIB_SERVICE": "The name of a `Mesh()` that was given none. Default: `anonymous`.",
    "MESHLIB_STATE_DIR": "Wins over `state_dir` of mesh.yaml; relative to the folder of that file.",
    "MESHLIB_GRPC_FAST_LEAF": "`0`: unary gRPC attempts go by grpc's public API only (ADR 0025).",
    "MESHLIB_TOKEN_FILE": "A file with the join token that a process enrols with, once, at the config service.",
    "MESHLIB_ZONE": "The zone that this process registers with. Wins over `instance.zone`.",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "Where it is set, spans are exported by OTLP.",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "`grpc` takes the gRPC exporter of OTLP; anything else the HTTP one.",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "The same, for spans alone.",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "The same, for spans alone; it wins.",
    "OTEL_SDK_DISABLED": "`true`: no provider is set up.",
    "OTEL_TRACES_EXPORTER": "Names of exporters, by comma; `none`: none.",
    "OTEL_TRACES_SAMPLER": "Where it is set, the SDK's sampler decides about new traces, not `telemetry.tracing`.",
}
_BROKEN: tuple[tuple[errors.Phase, errors.Cause], ...] = (
    ("connect", "refused"), ("write", "reset"), ("read", "reset"), ("read", "closed"), ("read", "protocol"),
    ("read", "too_large"), ("read", "decode"), ("write", "local"),
)  # fmt: skip
"""What a TransportError usually is."""
_SIGNS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Mult: lambda a, b: a * b,
    ast.LShift: lambda a, b: a * 2**b,
    ast.Pow: lambda a, b: a**b,
}
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def stack_tables() -> str:
    """The four recipes, outermost layer first, with the reason of each place."""
    lines = []
    for stack in (stacks.CALL, stacks.RULE, stacks.ROUTE, stacks.ENDPOINT, stacks.SERVER):
        name = stack.name[:1].upper() + stack.name[1:]
        lines += [f"### {name}", "", "| layer | why it sits here |", "| --- | --- |"]
        lines += [f"| {layer.role} | {layer.why} |" for layer in stack]
        lines.append("")
    return "\n".join(lines)


def metrics() -> str:
    """Every family of /metrics."""
    lines = ["| name | type | labels | |", "| --- | --- | --- | --- |"]
    for name, family in FAMILIES.items():
        labels = ", ".join(f"`{label}`" for label in family.labels) or "–"
        lines.append(f"| `{name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(lines)


def error_tree() -> str:
    """The tree, as `errors.py` draws it."""
    drawn = re.search(r"(?m)^    MeshError(?:.*\n)+?(?=\n)", errors.__doc__ or "")
    assert drawn is not None
    return f"```text\n{textwrap.dedent(drawn[0]).rstrip()}\n```"


def httpx_errors() -> str:
    """Which exception of httpx each error is, asked of the adapter itself."""
    lines = ["| error | is also | `retryable` | `sent` |", "| --- | --- | --- | --- |"]
    for said, error in _made():
        leaf = leaf_class(error)
        also = "–" if leaf is None else f"`httpx.{next(c.__name__ for c in leaf.__mro__ if c.__module__ == 'httpx')}`"
        retryable = (
            "if nothing was sent" if error.sent and isinstance(error, errors.TransportError) else error.retryable
        )
        sent = "if a byte left" if error.sent else "False"
        lines.append(f"| {said} | {also} | {retryable} | {sent} |")
    return "\n".join(lines)


def _made() -> Iterator[tuple[str, errors.MeshError]]:
    yield "`UnknownService`", errors.UnknownService("a")
    yield "`NoHealthyEndpoint`", errors.NoHealthyEndpoint("a", {})
    for reason in get_args(errors.Reason):
        yield f"`Rejected`, reason `{reason}`", errors.Rejected(reason, "")
    for phase in get_args(errors.Phase):
        sent = phase in ("write", "read")
        yield f"`DeadlineExceeded`, phase `{phase}`", errors.DeadlineExceeded("", phase=phase, sent=sent)
    yield "`IdentityError`", errors.IdentityError("")
    for phase, cause in _BROKEN:
        made = errors.TransportError("", phase=phase, cause=cause, sent=phase != "connect" and cause != "local")
        yield f"`TransportError`, phase `{phase}`, cause `{cause}`", made
    yield "`ConfigError`", errors.ConfigError("")
    yield "`PermissionDenied`", errors.PermissionDenied("")


def refused_options() -> str:
    """The options of httpx that a mesh client does not take."""
    return "\n".join(["| option | because |", "| --- | --- |", *(f"| `{k}` | {v} |" for k, v in REFUSED.items())])


def bounds() -> str:
    """Every bound, by the folder that keeps it."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE)
        area = module.parts[0] if len(module.parts) > 1 else ""
        if area in ("demo", "testing", "cli"):
            continue
        for name, value, said in _constants(ast.parse(path.read_text(encoding="utf-8")).body, module.stem):
            found.setdefault(area, []).append(f"| `{name}` | {_value(name, value)} | {said} | `{module}` |")
    for field in dataclasses.fields(HttpLimits):
        limit = _value(field.name.upper(), getattr(HttpLimits(), field.name))
        said = _AT_THE_BOUND[f"HttpLimits.{field.name}"]
        found["transport"].append(f"| `{field.name}` | {limit} | {said} | `transport/limits.py` |")
    lines = []
    for area in sorted(found, key=lambda area: [*_AREAS, area].index(area)):
        lines += [f"### {_AREAS.get(area, area)}", ""]
        lines += ["| name | value | what happens at it | in |", "| --- | --- | --- | --- |", *found[area], ""]
    return "\n".join(lines)


def _constants(body: list[ast.stmt], module: str, owner: str = "") -> Iterator[tuple[str, float, str]]:
    """(name, value, what is said of it) of every bound among some statements."""
    for at, node in enumerate(body):
        if isinstance(node, ast.ClassDef) and not any(ast.unparse(base).endswith("Enum") for base in node.bases):
            yield from _constants(node.body, module, f"{node.name}.")
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target = node.targets[0]
        names = [name.id for name in getattr(target, "elts", [target]) if isinstance(name, ast.Name)]
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        after = body[at + 1] if at + 1 < len(body) else None
        if len(names) != len(values):
            continue
        for name, value in zip(names, values, strict=True):
            number = _number(value)
            if number is None or not re.fullmatch(r"[A-Z][A-Z0-9_]+", name) or name in _NO_BOUNDS:
                continue
            yield name, number, _said(f"{owner}{name}", module, after)


def _said(name: str, module: str, after: ast.stmt | None) -> str:
    written = _AT_THE_BOUND.get(f"{module}.{name}") or _AT_THE_BOUND.get(name)
    if written:
        return written
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
        return " ".join(after.value.value.split())
    raise ValueError(
        f"{module}.py: {name} has no docstring: say what happens at this bound (or it is none: _NO_BOUNDS)"
    )


def _number(node: ast.expr) -> float | None:
    """The value of a number, or of one made by multiplying, shifting or raising numbers."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _SIGNS:
        left, right = _number(node.left), _number(node.right)
        return None if left is None or right is None else _SIGNS[type(node.op)](left, right)
    return None


def _value(name: str, value: float) -> str:
    if re.search(r"BYTES(?!_PER_S)|HIGH_WATER|WINDOW|RATIO_FROM", name):
        for size, unit in _UNITS:
            if value >= size and value % size == 0:
                return f"{value / size:g} {unit}"
    if name.endswith("_S"):
        for seconds, unit in ((86400.0, "d"), (3600.0, "h")):
            if value > seconds and value % seconds == 0:
                return f"{value / seconds:g} {unit}"
        return f"{value:g} s"
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def environment() -> str:
    """Every variable that the package reads; ValueError for one that is not described here, or no longer read."""
    pattern = re.compile(r"""["']((?:MESHLIB|OTEL)_[A-Z_]+)["']""")
    read = {
        name
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("demo", "testing")
        for name in pattern.findall(path.read_text(encoding="utf-8"))
    }
    if read != _ENVIRONMENT.keys():
        raise ValueError(f"docs/parts.py describes other variables than are read: {sorted(read ^ _ENVIRONMENT.keys())}")
    return "\n".join(
        ["| variable | |", "| --- | --- |", *(f"| `{k}` | {v} |" for k, v in sorted(_ENVIRONMENT.items()))]
    )


def commands() -> str:
    """The help of every command."""
    lines = []
    for name, command in _commands(command_line, "meshlib"):
        context = click.Context(command, info_name=name, terminal_width=100, **command_line.context_settings)
        lines += [f"## {name}", "", "```text", command.get_help(context).rstrip(), "```", ""]
    return "\n".join(lines)


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from _commands(inner, f"{name} {word}")


def api() -> str:
    """The public names, with their signatures and contracts as they stand in the code."""
    lines = []
    for name in meshlib.__all__:
        value = getattr(meshlib, name)
        if name.startswith("__"):
            continue
        lines += [f"## {name}", "", *_contract(name, value), ""]
        if name == "Mesh":
            for member, function in inspect.getmembers_static(value):
                if not member.startswith("_") and inspect.getdoc(function):
                    lines += [f"### Mesh.{member}", "", *_contract(member, function), ""]
    return "\n".join(lines)


def _contract(name: str, value: Any) -> list[str]:
    callable_ = inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, Exception))
    signature = f"{name}{inspect.signature(value)}" if callable_ and value is not meshlib.MeshConfig else name
    shown = textwrap.fill(signature.replace("'", ""), 100, subsequent_indent="    ", break_long_words=False)
    home = importlib.import_module(value.__module__).__name__ if hasattr(value, "__module__") else ""
    head = [f"`{home}`", ""] if inspect.isclass(value) or home == "meshlib.explanation" else []
    return [*head, "```python", shown, "```", "", "```text", inspect.getdoc(value) or "", "```"]


def decisions() -> str:
    """The decision records, by number."""
    lines = []
    for path in sorted((DOCS / "adr").glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        said = re.sub(r"^\d+[.:]\s*", "", title)
        if not path.name.startswith("0000"):
            lines.append(f"- {path.name[:4]}: [{said[:1].upper()}{said[1:]}](adr/{path.name})")
    return "\n".join(lines)


PARTS = {
    "stacks": stack_tables,
    "metrics": metrics,
    "error-tree": error_tree,
    "httpx-errors": httpx_errors,
    "refused-options": refused_options,
    "bounds": bounds,
    "environment": environment,
    "commands": commands,
    "api": api,
    "decisions": decisions,
}
