"""How a process reaches the config service: as a service of the mesh, through the client stack, on threads.

    ControlLink ─ CALL ─ router ─ ROUTE ─ balance (over `control.urls`) ─ ENDPOINT ─ blocking leaf ─ mTLS

Several URLs are several endpoints: which of them answers is the balancer's business. What this link learns of them is
its own: a control service that is away must not show among the application's destinations.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .call import Call
from .compilation import compile_service
from .config import config_of
from .discovery.fragment import REPLY_BYTES_MAX
from .errors import MeshError, UnknownService
from .identity.control import Issued
from .identity.pinned import PinnedTls
from .identity.spiffe import SpiffeId
from .identity.svid_tls import SvidTls
from .learned import Learned
from .plan import ServicePlan
from .policy.predicate import Predicates
from .runtime.blocking import BlockingRuntime, drive
from .scopes import ThreadScope
from .telemetry.metrics import Metrics
from .telemetry.tracing import Tracing

if TYPE_CHECKING:
    from .identity.join_token import JoinToken
    from .identity.svid import Svid, TrustBundle
    from .transport.tls_stream import ClientTls

CONTROL_SERVICE = "control.meshlib"
"""The config service as a service of the mesh: whom its certificate must name."""
CALL_TIMEOUT_S = 5.0
"""How long anything but a poll may take, in seconds."""
_NAME = "control"


class ControlRefusal(MeshError):
    """The config service answered, and not with what was asked for. `status`: of HTTP; `document`: its problem."""

    kind = "refused_by_control"

    def __init__(self, path: str, status: int, document: Mapping[str, Any]) -> None:
        self.status, self.document = status, document
        super().__init__(
            f"the config service answers {path} with {status}: {document.get('message', 'no reason given')}"
        )


class ControlLink:
    """Calls to the config service at `urls` (https://host:port). Thread-safe; close it with `close`."""

    service, anonymous = "agent", False

    def __init__(self, urls: Sequence[str], tls: ClientTls) -> None:
        self.urls, self._tls, self._closed = tuple(urls), tls, False
        self.metrics = Metrics()
        self.tracing = Tracing(0.0, random.Random())
        self.tracing.sampler_set = False  # a poll that waits is nobody's trace
        config = config_of(_mesh_of(self.urls))
        self._plan = compile_service(config, f"{_NAME}.default", Learned(BlockingRuntime().lock), self.service)
        self.predicates = Predicates(lambda _sentence: None)  # its own policy asks for none
        self._scope = ThreadScope(self)

    def plan(self, given: str) -> ServicePlan:
        """See scopes.Owner."""
        return self._plan

    def patience_s(self) -> float:
        """See scopes.Owner: nothing is waited for."""
        return 0.0

    def unknown(self, given: str) -> UnknownService:
        """See scopes.Owner."""
        return UnknownService(given)

    def client_tls(self, service: str) -> ClientTls:
        """See scopes.Owner."""
        return self._tls

    def call(
        self,
        method: str,
        path: str,
        document: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        max_retries: int = 1,
        idempotent: bool = True,
        bearer: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The body of a 200. ControlRefusal for another status, MeshError where there was no answer in time, OSError
        where the link is closed.

        `idempotent`: a lost answer may be asked for again. Nearly every operation of the config service may.
        """
        body = b"" if document is None else json.dumps(document).encode()
        lines = [f"host: {_NAME}", "accept: application/json", *(f"{k}: {v}" for k, v in (headers or {}).items())]
        if bearer:
            lines.append(f"authorization: Bearer {bearer}")
        if document is not None or method not in ("GET", "DELETE"):
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        call = Call(
            f"{_NAME}.default", method, path.encode(), "".join(f"{line}\r\n" for line in lines).encode("latin-1"), body,
            timeout_s=timeout_s, max_retries=max_retries, idempotent=idempotent,
        )  # fmt: skip
        try:
            reply = drive(self._scope.service(_NAME)(call))
        except RuntimeError as error:
            if self._closed:
                raise OSError("the connections to the config service are closed") from error
            raise
        if reply.status != 200:
            raise ControlRefusal(path, reply.status, _document(reply.body))
        return reply.body

    def ask(self, method: str, path: str, document: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """`call`, for a JSON object. ControlRefusal where it is none."""
        body = self.call(method, path, document, **options)
        found = _document(body)
        if not found and body.strip() != b"{}":
            raise ControlRefusal(path, 200, {"message": "what came is no JSON object"})
        return found

    def close(self) -> None:
        """Close every connection; calls under way, and later ones, fail with MeshError or OSError."""
        self._closed = True
        self._scope.close()

    def abandon(self) -> None:
        """After a fork: forget every connection without a byte to anybody."""
        self._scope.abandon()


class RemoteAuthority:
    """The CA of the config service: identity.control.Authority over the network. A link of its own for each request:
    certificates are asked for twice a day, and each time as somebody else. `service`: who this process is to be,
    canonical, so that a token of another is not used up; '' leaves that to the token.
    """

    def __init__(self, urls: Sequence[str], trust_domain: str, instance: str, service: str = "") -> None:
        self._urls, self._instance, self._service = urls, instance, service
        self._expected = SpiffeId.for_service(trust_domain, CONTROL_SERVICE)

    def enrol(self, token: JoinToken, csr_pem: bytes) -> Issued:
        """A leaf for a join token, from the service whose root the token names. MeshError."""
        asked = {"csr": csr_pem.decode("ascii"), "instance": self._instance, "service": self._service or None}
        return self._issued(PinnedTls(token.root_sha256, self._expected), "/v1/enrol", asked, token.bearer)

    def renew(self, svid: Svid, bundle: TrustBundle, csr_pem: bytes) -> Issued:
        """A new leaf for the holder of a valid one. MeshError."""
        return self._issued(SvidTls(svid, bundle, self._expected), "/v1/renew", {"csr": csr_pem.decode("ascii")})

    def _issued(self, tls: ClientTls, path: str, document: dict[str, Any], bearer: str = "") -> Issued:
        link = ControlLink(self._urls, tls)
        try:
            reply = link.ask("POST", path, document, bearer=bearer)
        finally:
            link.close()
        try:
            return Issued(reply["chain"].encode("ascii"), reply["bundle"].encode("ascii"), int(reply["generation"]))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ControlRefusal(path, 200, {"message": f"what came is no certificate ({error!r})"}) from None


def _mesh_of(urls: Sequence[str]) -> dict[str, Any]:
    """The config service as a mesh of its own, of one service."""
    return {
        "version": 1,
        "mesh": _NAME,
        "control": {"urls": list(urls)},
        "services": {
            _NAME: {
                "endpoints": [{"static": [urlsplit(url).netloc for url in urls]}],
                "timeout": "60s",
                "limits": {"max_timeout": "5m", "max_response_body": REPLY_BYTES_MAX},
                "retries": {"retry_on": ["connect_failure", "reset"]},
                "connection_pool": {"max_connections": 4, "connect_timeout": "3s"},
            }
        },
    }


def _document(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
