"""The generated parts of control-api.md: operations, and the models of what is sent and answered."""

from __future__ import annotations

from meshlib.control import messages
from meshlib.control.messages import Message
from meshlib.control.openapi import OPERATIONS, statuses

_WHO = {
    "anyone": "anyone",
    "member": "a process, for its own service",
    "operator": "the operator",
    "member or operator": "a process or the operator",
    "newcomer": "who has a join token",
}


def operations() -> str:
    """Every operation: who may ask, what is sent, what is answered."""
    lines = ["| | who | sends | is answered | errors |", "| --- | --- | --- | --- | --- |"]
    for operation in OPERATIONS:
        errors = ", ".join(map(str, statuses(operation)))
        lines.append(
            f"| `{operation.method} {operation.path}` {operation.summary} | {_WHO[operation.role]} "
            f"| {_link(operation.body)} | {_link(operation.reply)} | {errors} |"
        )
    return "\n".join(lines)


def bodies() -> str:
    """Every message, its contract and its fields."""
    used: dict[str, type[Message]] = {}
    for operation in OPERATIONS:
        for model in (operation.body, operation.reply):
            if model is not None:
                used.setdefault(model.__name__, model)
    used |= {model.__name__: model for model in (messages.Rejection, messages.Signed, messages.Problem)}
    lines = []
    for name, model in sorted(used.items()):
        lines += [f"### {name}", "", " ".join((model.__doc__ or "").split()), ""]
        fields = [_field(field, info.is_required(), info.default) for field, info in model.model_fields.items()]
        lines += [", ".join(fields) or "No fields.", ""]
    return "\n".join(lines)


def _field(name: str, required: bool, default: object) -> str:
    return f"`{name}`" if required else f"`{name}` (default `{default!r}`)"


def _link(model: type[Message] | None) -> str:
    return "–" if model is None else f"[{model.__name__}](#{model.__name__.lower()})"


PARTS = {"control-operations": operations, "control-bodies": bodies}
