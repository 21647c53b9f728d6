"""Decorated handlers: the small application behind `mesh.get/post/…`, on Starlette's routing.

A parameter is filled by its name and its annotation:
  * a name of the path: from the path; `request`, or annotated `Request`: the request itself;
  * annotated dict, list or a pydantic model, or the only unannotated one left on POST, PUT, PATCH: the JSON body;
  * anything else (str, int, float, bool): from the query, with its default.
What does not fit is 422 with every parameter named. A result is JSON (dict, list, model), text/plain (str),
application/octet-stream (bytes), 204 (None), `(body, status)`, or a Response as it is. Source: FastAPI, cut down.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pydantic
import pydantic_core
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, compile_path

from .asgi import Host, Receive, Scope, Send
from .handler_guard import HandlerPolicy, handler_guard
from .refusal import Refusal, refuse

__all__ = ["Handler", "HandlerPolicy", "Handlers", "handler_guard"]

F = TypeVar("F", bound=Callable[..., Any])

BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110 §9.2.2."""
MESSAGE_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered handler, for registration and `explain`."""

    path: str
    methods: tuple[str, ...]
    policy: HandlerPolicy
    function: Callable[..., Any]

    @property
    def idempotent(self) -> bool:
        """As declared, else by the methods (RFC 9110 §9.2.2)."""
        declared = self.policy.idempotent
        return IDEMPOTENT_METHODS.issuperset(self.methods) if declared is None else declared


class Handlers:
    """The built-in application: an ASGI application to which handlers are added before it serves."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.registered: list[Handler] = []
        self._app = Starlette()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def route(self, path: str, methods: Sequence[str], **policy: Any) -> Callable[[F], F]:
        """The decorator that serves a function at `path` for `methods`; the function itself stays as it is.

        TypeError at once for a parameter that could not be filled.
        """
        wanted = HandlerPolicy.of(**policy)
        verbs = tuple(method.upper() for method in methods)

        def register(function: F) -> F:
            arguments = _arguments(function, path, verbs)
            guarded = handler_guard(self.host, wanted)(function)
            self._app.router.routes.append(Route(path, _endpoint(guarded, arguments), methods=list(verbs)))
            self.registered.append(Handler(path, verbs, wanted, function))
            return function

        return register


@dataclass(frozen=True, slots=True)
class _Argument:
    """Where one parameter comes from: path, query, body or request."""

    name: str
    source: str
    adapter: pydantic.TypeAdapter[Any]
    default: Any


def _arguments(function: Callable[..., Any], path: str, methods: Sequence[str]) -> list[_Argument]:
    in_path = set(compile_path(path)[2])
    hints = typing.get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    name = getattr(function, "__qualname__", repr(function))
    bare = [p.name for p in parameters if p.name not in hints and p.name not in in_path and p.name != "request"]
    only_bare = bare[0] if len(bare) == 1 and BODY_METHODS.intersection(methods) else None
    found = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"handler {name}: parameter {parameter} cannot be filled by name")
        hint = hints.get(parameter.name, str)
        source = _source(parameter.name, hint, in_path, only_bare)
        annotated = Any if parameter.name == only_bare or source == "request" else hint
        found.append(_Argument(parameter.name, source, pydantic.TypeAdapter(annotated), parameter.default))
    bodies = [argument.name for argument in found if argument.source == "body"]
    if len(bodies) > 1:
        raise TypeError(f"handler {name}: a request has one body, and {' and '.join(bodies)} would each take it")
    return found


def _source(name: str, hint: Any, in_path: set[str], only_bare: str | None) -> str:
    if name in in_path:
        return "path"
    if hint is Request or (name == "request" and hint is str):
        return "request"
    if name == only_bare or any(_is_document(part) for part in (hint, *typing.get_args(hint))):
        return "body"
    return "query"


def _is_document(hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and issubclass(kind, (dict, list, pydantic.BaseModel))


def _endpoint(function: Callable[..., Any], arguments: list[_Argument]) -> Callable[[Request], Awaitable[Response]]:
    is_async = inspect.iscoroutinefunction(function)

    async def endpoint(request: Request) -> Response:
        values, problems = await _values(request, arguments)
        if problems:
            sentence = "; ".join(f"{p['in']} parameter {p['name']!r}: {p['message']}" for p in problems)
            return _answer(refuse(422, "invalid", sentence, refused=False, parameters=problems))
        # A MeshError goes on to the adapter, which alone may say `x-meshlib-refused`.
        return _response(await function(**values) if is_async else await run_in_threadpool(function, **values))

    return endpoint


async def _values(request: Request, arguments: list[_Argument]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    values: dict[str, Any] = {}
    problems: list[dict[str, str]] = []
    for argument in arguments:
        name, source = argument.name, argument.source
        try:
            if source == "request":
                values[name] = request
                continue
            raw = await request.body() if source == "body" else _text(request, argument)
            if raw in (None, b""):
                if argument.default is inspect.Parameter.empty:
                    problems.append({"name": name, "in": source, "message": "is required"})
                else:
                    values[name] = argument.default
            elif source == "body":
                values[name] = argument.adapter.validate_json(raw)
            else:
                values[name] = argument.adapter.validate_python(raw)
        except pydantic.ValidationError as error:
            problems.append({"name": name, "in": source, "message": _sentence(error)})
    return values, problems


def _text(request: Request, argument: _Argument) -> Any:
    given = request.path_params if argument.source == "path" else request.query_params
    return given.get(argument.name)


def _sentence(error: pydantic.ValidationError) -> str:
    first, *more = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(map(str, first["loc"]))
    text = (f"{where}: " if where else "") + first["msg"] + (f" (and {len(more)} more)" if more else "")
    return text[:MESSAGE_CHARS_MAX]


def _response(result: Any) -> Response:
    status = 200
    if isinstance(result, tuple) and len(result) == 2 and type(result[1]) is int:
        result, status = result
    if isinstance(result, Response):
        return result
    if result is None:
        return Response(status_code=204 if status == 200 else status)
    if isinstance(result, str):
        return Response(result, status, media_type="text/plain")
    if isinstance(result, bytes):
        return Response(result, status, media_type="application/octet-stream")
    return Response(pydantic_core.to_json(result), status, media_type="application/json")


def _answer(refusal: Refusal) -> Response:
    return Response(refusal.body, refusal.status, headers=dict(refusal.text_headers))
