"""A gRPC call and its reply, as the stacks see them: a POST to /package.Service/Method with metadata for header fields.

Serialised messages go down, serialised messages come back; who called has the serialisers. The status of a reply is the
HTTP status that means what its code means, so that `retry_on`, outlier detection and metrics are about both protocols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ...call import Call, HeaderEdit, Reply
from ...grpc_code import HTTP_STATUS

if TYPE_CHECKING:
    from ...call import Fields

Kind = Literal["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
Metadata = tuple[tuple[str, str | bytes], ...]


class GrpcCall(Call):
    """`body`: the serialised request, or a Replay of several. `options`: what grpc's multicallables take beside the
    request, its time and its metadata. `parked`: on threads, whether its real call may be waited for later (park.py).
    """

    __slots__ = ("kind", "metadata", "options", "parked")

    kind: Kind
    metadata: Metadata
    options: dict[str, Any]
    parked: bool

    def fork(self) -> GrpcCall:
        """The next attempt."""
        new = super().fork()
        assert isinstance(new, GrpcCall)
        new.kind, new.metadata, new.options, new.parked = self.kind, self.metadata, self.options, self.parked
        return new

    def mirror(self) -> GrpcCall:
        """A copy for a mirror."""
        new = super().mirror()
        assert isinstance(new, GrpcCall)
        new.parked = False
        return new

    @property
    def replayable(self) -> bool:
        """Can the request be sent again? A stream of messages can until it is committed (gRFC A6)."""
        return type(self.body) is bytes or not getattr(self.body, "committed", True)

    @property
    def copyable(self) -> bool:
        """Can a mirror have it? Not a stream of messages."""
        return type(self.body) is bytes

    def header(self, name: str) -> list[str]:
        """Every text value of a metadata key; `host` is the service that is called."""
        wanted = name.lower()
        if wanted == "host":
            return [self.service]
        return [value for key, value in self.metadata if key == wanted and isinstance(value, str)]

    def edit_headers(self, edit: HeaderEdit) -> None:
        """Change the metadata."""
        gone = edit.gone
        kept = tuple(pair for pair in self.metadata if pair[0] not in gone)
        self.metadata = (*kept, *edit.set, *edit.add)


class GrpcReply(Reply):
    """`native`: grpc's own call object or error, for who wants its metadata. `details`: of a code that is not OK."""

    __slots__ = ("details", "native")

    def __init__(self, code: int, body: bytes = b"", *, native: Any = None, details: str = "") -> None:
        super().__init__(HTTP_STATUS[code], [], body, code=code)
        self.native, self.details = native, details


def fields_of(metadata: Any) -> Fields:
    """Metadata as header fields."""
    return [
        (key.encode("ascii"), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
        for key, value in metadata or ()
    ]
