"""The W3C Trace Context headers: which ones are believed, and what is sent on.

Rules (W3C "Trace Context" level 1, Recommendation of 23 November 2021; keys of `tracestate` as in level 2, which takes
every key of level 1):
  * `traceparent` exists exactly once, in lower-case hex, or the trace starts anew;
  * version 00 ends after the flags; a later version may go on after a dash; ff is never valid; ids are not zero;
  * `tracestate` counts only beside a valid `traceparent`, all its lines make one list, empty members are fine;
  * one malformed member or a 33rd discards the whole list; of two members with one key the first is kept;
  * what is sent is version 00 with no flag but `sampled`.
"""

from __future__ import annotations

import re

from ..call import TraceContext

TRACEPARENT_CHARS_MAX = 512
"""A longer `traceparent` (only a version of the future could have one) is refused unread."""
TRACESTATE_INPUT_CHARS_MAX = 8192
"""A longer `tracestate` is discarded unread."""
TRACESTATE_CHARS_MAX = 512
"""What is passed on; W3C §3.3.1.5: propagate at least 512 characters."""
TRACESTATE_MEMBERS_MAX = 32
LARGE_MEMBER_CHARS = 128
"""W3C §3.3.1.5: members larger than this are the first to go."""

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER = re.compile(
    r"([a-z0-9][a-z0-9_\-*/@]{0,255})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


def parse_traceparent(values: list[str]) -> TraceContext | None:
    """The caller's place in its trace, from every `traceparent` value received; None: there is none to believe."""
    if len(values) != 1 or len(values[0]) > TRACEPARENT_CHARS_MAX:
        return None
    match = _PARENT.fullmatch(values[0].strip(" \t"))
    if match is None:
        return None
    version, trace, span, flags, rest = match.groups()
    trace_id, span_id = int(trace, 16), int(span, 16)
    if version == "ff" or (version == "00" and rest) or not trace_id or not span_id:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))


def parse_tracestate(values: list[str]) -> str:
    """Every `tracestate` value received as the one list to pass on, at most 512 characters; '' when it is invalid."""
    if sum(map(len, values)) > TRACESTATE_INPUT_CHARS_MAX:
        return ""
    members: dict[str, str] = {}
    listed = [member for value in values for part in value.split(",") if (member := part.strip(" \t"))]
    if len(listed) > TRACESTATE_MEMBERS_MAX:
        return ""
    for member in listed:
        match = _MEMBER.fullmatch(member)
        if match is None:
            return ""
        members.setdefault(match[1], member)
    return _truncate(list(members.values()))


def render(trace: TraceContext) -> bytes:
    """The header lines that put a request at this place in the trace, each ended by CRLF."""
    line = b"traceparent: 00-%032x-%016x-%02x\r\n" % (trace.trace_id, trace.span_id, trace.sampled)
    return line + b"tracestate: %b\r\n" % trace.state.encode("ascii") if trace.state else line


def _truncate(members: list[str]) -> str:
    """Large members go first, then whole members from the end: nothing is ever cut in the middle."""
    excess = len(",".join(members)) - TRACESTATE_CHARS_MAX
    for large_only in (True, False):
        for at in range(len(members) - 1, -1, -1):
            if excess > 0 and (not large_only or len(members[at]) > LARGE_MEMBER_CHARS):
                excess -= len(members.pop(at)) + 1
    return ",".join(members)
