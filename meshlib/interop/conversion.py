"""Policies of other systems as a `MeshConfig`, with a report of what became of each field."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..config import config_of
from ..errors import ConfigError, Problem
from .foreign import ForeignDocument, read_documents

if TYPE_CHECKING:
    from ..config import MeshConfig

SYSTEMS = ("gateway-api",)
"""What can be converted by this release."""

Outcome = Literal["kept", "approximated", "dropped"]


@dataclass(frozen=True, slots=True)
class ReportLine:
    """What became of a field: `document` is kind namespace/name, `field` its path, `why` one sentence."""

    document: str
    field: str
    outcome: Outcome
    why: str = ""

    def __str__(self) -> str:
        return f"{self.outcome:12} {self.document}: {self.field}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True, slots=True)
class Conversion:
    """`config`: what the documents mean here. `mesh`: the same as plain data, as mesh.yaml has it. `report`: every
    field of the sources.
    """

    config: MeshConfig
    mesh: Mapping[str, Any]
    report: tuple[ReportLine, ...]

    def to_yaml(self) -> str:
        """A mesh.yaml that loads as `config`."""
        import yaml

        return yaml.dump(dict(self.mesh), Dumper=_plain_dumper(), sort_keys=False, allow_unicode=True, width=120)


Documents = str | os.PathLike[str] | Mapping[str, Any] | Iterable[str | os.PathLike[str] | Mapping[str, Any]]


def convert(system: str, documents: Documents) -> Conversion:
    """The policy of another system. `system`: gateway-api. `documents`: paths, YAML text, or mappings; one or several.

    What the system itself would refuse raises ConfigError with every problem, by document and field. What has no
    counterpart here is in the report; what would weaken a protection by being left out is an error.
    """
    if system not in SYSTEMS:
        raise ConfigError(f"{system!r} cannot be converted by this release; there is {', '.join(SYSTEMS)}")
    given = [documents] if isinstance(documents, str | os.PathLike | Mapping) else list(documents)
    read = [document for each in given for document in read_documents(each)]
    from .gateway_api import mesh_of

    mesh = mesh_of(read)
    problems = [problem for document in read for problem in document.problems]
    if problems:
        raise ConfigError([Problem(document, 0, 0, path, message) for document, path, message in problems])
    return Conversion(config_of(mesh), mesh, tuple(line for document in read for line in _lines(document)))


def _lines(document: ForeignDocument) -> Sequence[ReportLine]:
    return [ReportLine(document.name, *outcome) for outcome in document.outcomes()]


def _plain_dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # mesh.yaml has none

    return Dumper
