"""Fake services: what one answers, call after call, and what it was asked.

Rules.
  * A script is a list of steps. Each step but the last answers `times` requests, the last all that follow.
    `reply`, `handler` and `fail` begin a new script; after `.then` they add to it.
  * The most specific script decides: the endpoint's, else its subset's, else the service's. So does the most specific
    `delay`. Without any script a service answers 200 and says which endpoint it is.
  * A request is recorded when it arrives: one that was refused, or aborted by a fault, never did.
"""

from __future__ import annotations

import json as jsonlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import httpx

from ..call import Fields, Reply

if TYPE_CHECKING:
    from ..config import MeshConfig
    from ..endpoint import Endpoint

Failure = Literal["refused", "reset", "closed", "timeout"]
Handler = Callable[["FakeRequest"], Any]

REQUESTS_MAX = 10_000
"""Requests that a fake service remembers; older ones are forgotten, `count` still has them."""


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """One request that arrived. `path` is without `query`; `attempt` counts from 1; `at`: monotonic seconds.

    `headers`: as they went out, those of the mesh (`x-meshlib-*`, `traceparent`) included. `endpoint`: `host:port`.
    """

    service: str
    endpoint: str
    method: str
    path: str
    query: str
    headers: httpx.Headers
    body: bytes
    attempt: int
    at: float

    def json(self) -> Any:
        """The body as JSON; ValueError where it is not."""
        return jsonlib.loads(self.body)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply that is ready to be given, any number of times."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def reply(self, method: str, more: Iterable[tuple[bytes, bytes]] = ()) -> Reply:
        """A Reply to a request of this method."""
        body = b"" if method == "HEAD" else self.body
        return Reply(self.status, [*self.fields, *more], body, reason=_phrase(self.status))


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a script: exactly one of the three. `times`: requests it answers where another step follows."""

    times: int
    answer: Answer | None = None
    handler: Handler | None = None
    failure: Failure | None = None


class Script:
    """What is answered, in order. Every method returns the script, so that steps are chained.

    >>> script = Script().fail("refused", times=2).then.reply(json={"stock": 7})
    >>> [script.take().failure for _ in range(4)]
    ['refused', 'refused', None, None]
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: list[Step] = []
        self._left = 0
        self._adding = False
        self.delay_s: float | None = None

    def reply(
        self,
        status: int = 200,
        *,
        json: Any = None,
        text: str | None = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        times: int = 1,
    ) -> Self:
        """Answer with a status from 200 to 599 and a body: `json`, else `text`, else `content`.

        ValueError: a status or `times` out of range.
        """
        return self._add(Step(times, answer=answer_of(status, json, text, content, headers or {})))

    def handler(self, function: Handler, *, times: int = 1) -> Self:
        """Answer with what `function(request)` returns, `def` or `async def`; it may call on through a mesh.

        As of a decorated handler: text, bytes, None (204), `(body, status)`, anything else is JSON. A MeshError that
        escapes it is a 500, as from a real application; any other exception goes to the caller, and fails the test.
        """
        return self._add(Step(times, handler=function))

    def fail(self, failure: Failure, *, times: int = 1) -> Self:
        """Do not answer. `refused`: no connection; `reset` and `closed`: the connection ends after the request was
        sent; `timeout`: nothing comes until the attempt's time is over. ValueError: another word.
        """
        if failure not in get_args(Failure):
            raise ValueError(f"fail({failure!r}): a service fails by {', '.join(get_args(Failure))}")
        return self._add(Step(times, failure=failure))

    def delay(self, seconds: float) -> Self:
        """Every answer comes after `seconds` ≥ 0, in the time of the mesh: real, or virtual in a simulation."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"delay must be a number of seconds from 0, got {seconds!r}")
        self.delay_s = seconds
        return self

    @property
    def then(self) -> Self:
        """What is said next comes after the steps so far. ValueError where there are none."""
        if not self._steps:
            raise ValueError("then: there is nothing before it; begin with reply, handler or fail")
        self._adding = True
        return self

    def take(self) -> Step | None:
        """The step that answers the next request; None: this script says nothing. Thread-safe."""
        with self._lock:
            if not self._steps:
                return None
            step = self._steps[0]
            if len(self._steps) > 1:
                self._left -= 1
                if not self._left:
                    del self._steps[0]
                    self._left = self._steps[0].times
            return step

    def _add(self, step: Step) -> Self:
        if step.times < 1:
            raise ValueError(f"times must be 1 or more, got {step.times}")
        with self._lock:
            if not self._adding:
                self._steps, self._left = [], step.times
            self._steps.append(step)
            self._adding = False
        return self


class FakeService(Script):
    """A service in memory; made by `FakeMesh.service`. See `Script` for what it can be told.

    >>> from meshlib.testing import FakeMesh
    >>> mesh = FakeMesh({"version": 1, "mesh": "shop", "services": {"inventory": {}}})
    >>> inventory = mesh.service("inventory").reply(503).then.reply(json={"stock": 7})
    >>> mesh.sync_client("inventory").get("/items/7").json()
    {'stock': 7}
    >>> [(request.method, request.path, request.attempt) for request in inventory.requests]
    [('GET', '/items/7', 1), ('GET', '/items/7', 2)]
    """

    def __init__(self, name: str, config: Callable[[], MeshConfig]) -> None:
        super().__init__()
        self.name, self._config = name, config
        self._endpoints: dict[str, Script] = {}
        self._subsets: dict[str, Script] = {}
        self._requests: deque[FakeRequest] = deque(maxlen=REQUESTS_MAX)
        self.count = 0

    @property
    def requests(self) -> list[FakeRequest]:
        """What arrived, oldest first: the last `REQUESTS_MAX` of `count`."""
        with self._lock:
            return list(self._requests)

    @property
    def addresses(self) -> tuple[str, ...]:
        """`host:port` of each endpoint, in the order of mesh.yaml."""
        return tuple(endpoint.address for endpoint in self._config().endpoints(self.name))

    def endpoint(self, address: str) -> Script:
        """The script of one endpoint. ValueError where the policy in force has no such endpoint."""
        if address not in self.addresses:
            raise ValueError(f"{self.name!r} has no endpoint {address!r}; it has {', '.join(self.addresses)}")
        return self._endpoints.setdefault(address, Script())

    def subset(self, name: str) -> Script:
        """The script of the endpoints of one subset. ValueError where the policy in force has no such subset."""
        known = self._config().services[self.name].subsets
        if name not in known:
            raise ValueError(f"{self.name!r} has no subset {name!r}; it has {', '.join(known) or 'none'}")
        return self._subsets.setdefault(name, Script())

    def arrived(self, request: FakeRequest) -> None:
        """Remember a request. Thread-safe."""
        with self._lock:
            self._requests.append(request)
            self.count += 1

    def step_for(self, endpoint: Endpoint) -> Step:
        """What the next request to `endpoint` meets."""
        for script in self._scripts(endpoint):
            step = script.take()
            if step is not None:
                return step
        said = {"service": self.name.removesuffix(".default"), "endpoint": endpoint.address}
        return Step(1, answer=answer_of(200, said, None, b"", {}))

    def delay_for(self, endpoint: Endpoint) -> float:
        """Seconds until an answer of `endpoint`."""
        return next((s.delay_s for s in self._scripts(endpoint) if s.delay_s is not None), 0.0)

    def _scripts(self, endpoint: Endpoint) -> list[Script]:
        subsets = self._config().services[self.name].subsets if self._subsets else {}
        chosen = [self._endpoints[endpoint.address]] if endpoint.address in self._endpoints else []
        chosen += [s for name, s in self._subsets.items() if name in subsets and endpoint.has(subsets[name])]
        return [*chosen, self]


def answer_of(status: int, json: Any, text: str | None, content: bytes, headers: Mapping[str, str]) -> Answer:
    """The Answer with this status and body. ValueError: the status is not final."""
    if not 200 <= status <= 599:
        raise ValueError(f"status must be from 200 to 599, got {status!r}")
    body, kind = content, ""
    if json is not None:
        body, kind = jsonlib.dumps(json).encode(), "application/json"
    elif text is not None:
        body, kind = text.encode(), "text/plain; charset=utf-8"
    fields: Fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    given = {name.lower() for name, _ in fields}
    if kind and b"content-type" not in given:
        fields.append((b"content-type", kind.encode()))
    if status in (204, 304):
        body = b""
    elif b"content-length" not in given:
        fields.append((b"content-length", b"%d" % len(body)))
    return Answer(status, tuple(fields), body)


def answer_from(result: Any) -> Answer:
    """The Answer that a handler's result means; see `Script.handler`."""
    status = 200
    if isinstance(result, tuple) and len(result) == 2 and type(result[1]) is int:
        result, status = result
    if result is None:
        return answer_of(204 if status == 200 else status, None, None, b"", {})
    if isinstance(result, bytes):
        return answer_of(status, None, None, result, {"content-type": "application/octet-stream"})
    return answer_of(status, None if isinstance(result, str) else result, result, b"", {})


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
