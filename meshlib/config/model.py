"""mesh.yaml as a whole: `MeshConfig`, validated and frozen. What is not enforced by this release is not in it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, WithJsonSchema, model_validator

from meshlib.endpoint import Endpoint

from .endpoints import ListenAddress
from .fields import CanonicalName, Label, Section, Share, Text, TrustDomain, canonical_name, is_label
from .problems import DICT, Path
from .reader import Document
from .services import Service
from .settings import Settings
from .units import quoted


def _version(value: Any) -> int:
    if type(value) is int and value == 1:
        return value
    raise ValueError(f"must be the number 1, the version of this file format, not {quoted(value)}")


class Identity(Section):
    """How a process proves who it is."""

    source: Literal["dev"] = Field(
        default="dev", description="dev: a local certificate authority in state_dir, for 127.0.0.1 only. Built-in: dev."
    )


class Admin(Section):
    """The port for probes and scrapers that have no certificate."""

    listen: ListenAddress = Field(default="127.0.0.1:0", description="host:port; port 0: any. Built-in: 127.0.0.1:0.")


class Tracing(Section):
    """Traces, in the format of W3C and OpenTelemetry."""

    sample: Share = Field(default=0.01, description="Share of new traces that is recorded. Built-in: 1%.")


class Telemetry(Section):
    """What is recorded about calls."""

    tracing: Tracing = Field(default=Tracing(), description="Traces.")


class MeshConfig(Section):
    """A mesh. Made by `load_config`, `parse_config` or `config_of`; services are under their canonical names.

    Durations are seconds, shares fractions, sizes bytes. None: not written at that level; `effective` merges them.
    """

    version: Annotated[int, BeforeValidator(_version), WithJsonSchema({"const": 1})] = Field(
        description="Version of this file format: 1."
    )
    mesh: Label = Field(description="Name of the mesh: lower-case letters, digits, hyphens.")
    trust_domain: TrustDomain = Field(
        default="",
        description="Of identities: spiffe://<trust_domain>/ns/<namespace>/sa/<service>. Built-in: <mesh>.dev.",
    )
    identity: Identity = Field(default=Identity(), description="How a process proves who it is.")
    state_dir: Text = Field(default=".meshlib", description="For keys; relative to this file. Built-in: .meshlib.")
    admin: Admin = Field(default=Admin(), description="The port for probes and scrapers.")
    telemetry: Telemetry = Field(default=Telemetry(), description="What is recorded about calls.")
    defaults: Settings = Field(default=Settings(), description="For every service that does not say it itself.")
    services: dict[CanonicalName, Service] = Field(
        default={}, description="By name or name.namespace; namespace: default."
    )

    _document: Document = PrivateAttr(default_factory=lambda: Document(DICT))
    _written: dict[str, str] = PrivateAttr(default_factory=dict)
    _endpoints: dict[str, tuple[Endpoint, ...]] = PrivateAttr(default_factory=dict)
    _files: tuple[pathlib.Path, ...] = PrivateAttr(default=())
    _directory: pathlib.Path = PrivateAttr(default_factory=pathlib.Path.cwd)
    _version_number: int = PrivateAttr(default=0)

    @model_validator(mode="before")
    @classmethod
    def _name_trust_domain(cls, data: Any) -> Any:
        if isinstance(data, dict) and "trust_domain" not in data and is_label(data.get("mesh")):
            return {**data, "trust_domain": f"{data['mesh']}.dev"}
        return data

    @property
    def version_number(self) -> int:
        """48 bits of SHA-256 of the content, endpoint files included: equal in processes that read the same."""
        return self._version_number

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """Every file that was read, absolute: parts of the configuration first, then endpoint files."""
        return self._files

    @property
    def directory(self) -> pathlib.Path:
        """What relative paths of the configuration are relative to; absolute."""
        return self._directory

    def place(self, path: Path) -> str:
        """`file:line` of the field at `path` (keys and indices), or of the nearest thing around it."""
        if len(path) > 1 and path[0] == "services":
            path = ("services", self._written.get(str(path[1]), path[1]), *path[2:])
        return self._document.where(path)

    def written(self, service: str) -> str:
        """The key under which a service stands in the file, by canonical name."""
        return self._written.get(service, service)

    def canonical(self, name: str, namespace: str = "default") -> str | None:
        """`name.namespace` of a known service, or None. A bare name: the caller's `namespace` first, then default."""
        return resolve(self.services, name, namespace)

    def names(self) -> tuple[str, ...]:
        """The canonical names of all services, sorted."""
        return tuple(sorted(self.services))

    def endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """All endpoints of a service (canonical name), static and from files, in the order of its sources."""
        return self._endpoints.get(service, ())


def resolve(known: Mapping[str, Any], name: str, namespace: str) -> str | None:
    """The canonical name in `known` that `name` means for a caller of `namespace`, or None."""
    if "." in name:
        return name if name in known else None
    here = f"{name}.{namespace}"
    return here if here in known else canonical_name(name) if canonical_name(name) in known else None
