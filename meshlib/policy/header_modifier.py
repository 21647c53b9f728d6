"""Header modifiers: fields of request and reply, removed, set and added. Source: Gateway API HTTPHeaderFilter.

It sits above retry: a call is changed once, and its attempts are copies of it. An edit removes first, then sets, then
adds; what is added goes beside the fields of that name that there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..call import Call, HeaderEdit, Reply
    from ..stack import Service


@dataclass(frozen=True, slots=True)
class HeaderModifier:
    """A filter. `request`: done before the call goes on; `response`: done to the reply, whoever made it."""

    request: HeaderEdit | None
    response: HeaderEdit | None

    async def __call__(self, call: Call, service: Service) -> Reply:
        if self.request is not None:
            call.edit_headers(self.request)
        reply = await service(call)
        if self.response is not None:
            reply.edit_headers(self.response)
        return reply
