"""mesh.yaml as a whole: `MeshConfig`, validated and frozen. What is not enforced by this release is not in it."""

from __future__ import annotations

import copy
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, WithJsonSchema, model_validator

from meshlib.endpoint import Endpoint

from .bootstrap import Admin, Ca, Control, Dns, Identity, Instance, Telemetry
from .fields import CanonicalName, Label, Section, Text, TrustDomain, canonical_name, is_label
from .gateways import Gateway
from .problems import DICT, Path
from .questions import Question, Resolved
from .reader import Document
from .services import Service
from .settings import Settings
from .sources import REGISTERED, Named, Part, assembled
from .units import quoted

GATEWAY = "gateway/"
"""How the name of a gateway begins where it stands beside names of services."""


def _version(value: Any) -> int:
    if type(value) is int and value == 1:
        return value
    raise ValueError(f"must be the number 1, the version of this file format, not {quoted(value)}")


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
    control: Control | None = Field(default=None, description="The config service. Built-in: none.")
    identity: Identity = Field(default=Identity(), description="How a process proves who it is.")
    policy_source: Literal["file", "store"] = Field(
        default="file",
        description="Of the config service. file: it follows this file. store: what was last put there is the policy, "
        "and this file only says how it runs. Built-in: file.",
    )
    ca: Ca = Field(default=Ca(), description="The certificate authority of the config service.")
    state_dir: Text = Field(default=".meshlib", description="For keys; relative to this file. Built-in: .meshlib.")
    admin: Admin = Field(default=Admin(), description="The port for probes and scrapers.")
    instance: Instance = Field(default=Instance(), description="What this process registers beside its address.")
    dns: Dns = Field(default=Dns(), description="Whom this process asks for the names of `dns` and `srv` endpoints.")
    telemetry: Telemetry = Field(default=Telemetry(), description="What is recorded about calls.")
    defaults: Settings = Field(default=Settings(), description="For every service that does not say it itself.")
    services: dict[CanonicalName, Service] = Field(
        default={}, description="By name or name.namespace; namespace: default."
    )
    gateways: dict[Label, Gateway] = Field(default={}, description="Where traffic from outside comes in, by name.")

    _document: Document = PrivateAttr(default_factory=lambda: Document(DICT))
    _written: dict[str, str] = PrivateAttr(default_factory=dict)
    _endpoints: dict[str, tuple[Endpoint, ...]] = PrivateAttr(default_factory=dict)
    _parts: dict[str, tuple[Part, ...]] = PrivateAttr(default_factory=dict)
    _registered: dict[str, tuple[Endpoint, ...]] = PrivateAttr(default_factory=dict)
    _resolved: Mapping[Question, Resolved] = PrivateAttr(default_factory=dict)
    _file_entries: dict[Path, list[Any]] = PrivateAttr(default_factory=dict)
    _files: tuple[pathlib.Path, ...] = PrivateAttr(default=())
    _directory: pathlib.Path = PrivateAttr(default_factory=pathlib.Path.cwd)
    _policy_number: int = PrivateAttr(default=0)
    _version_number: int = PrivateAttr(default=0)

    @model_validator(mode="before")
    @classmethod
    def _derived(cls, data: Any) -> Any:
        """The built-in values that other fields decide."""
        if not isinstance(data, dict):
            return data
        derived = dict(data)
        if "trust_domain" not in data and is_label(data.get("mesh")):
            derived["trust_domain"] = f"{data['mesh']}.dev"
        if "control" in data and isinstance(identity := data.get("identity", {}), dict):
            derived["identity"] = {"source": "control", **identity}
        return derived

    @property
    def version_number(self) -> int:
        """48 bits of SHA-256 of the content, endpoint files and what is registered included: equal in processes that
        read the same.
        """
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

    def owner(self, name: str) -> Service | Gateway | None:
        """Whose routes `name` means: a service by its canonical name, or a gateway as gateway/<name>."""
        if name.startswith(GATEWAY):
            return self.gateways.get(name.removeprefix(GATEWAY))
        return self.services.get(name)

    def path_of(self, owner: str) -> Path:
        """Where a service (canonical name) or a gateway (gateway/<name>) stands in the file."""
        if owner.startswith(GATEWAY):
            return ("gateways", owner.removeprefix(GATEWAY))
        return ("services", self.written(owner))

    def endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """All endpoints of a service (canonical name), in the order of its sources.

        Those of its `registry` source are what `with_registered` gave, those of `dns` and `srv` what `with_resolved`
        did; without that they are empty.
        """
        return self._endpoints.get(service, ())

    def has_registry(self, service: str) -> bool:
        """Has a service (canonical name) a `registry` source?"""
        return any(part is REGISTERED for part in self._parts.get(service, ()))

    def questions(self, service: str) -> tuple[Question, ...]:
        """What name servers are asked for the endpoints of a service (canonical name)."""
        return tuple(part.question for part in self._parts.get(service, ()) if isinstance(part, Named))

    def resolved(self, question: Question) -> Resolved | None:
        """What `with_resolved` gave for a question."""
        return self._resolved.get(question)

    def with_registered(self, endpoints: Mapping[str, tuple[Endpoint, ...]]) -> MeshConfig:
        """The same configuration, in which the `registry` source of a service has these, by canonical name, and that of
        every other none.

        An address that several sources have, or one has twice, counts once: the first. What is given for a service
        without a `registry` source is left out. Nothing is checked again; it is cheap, and may be done at every change.
        """
        given = {
            name: endpoints[name] for name in sorted(self._parts) if endpoints.get(name) and self.has_registry(name)
        }
        config = self._with(given, self._resolved)
        registered = [[name, [_content(endpoint) for endpoint in found]] for name, found in given.items()]
        config._version_number = number_of([self._policy_number, registered]) if given else self._policy_number
        return config

    def with_resolved(self, answers: Mapping[Question, Resolved]) -> MeshConfig:
        """The same configuration, of the same version, in which `dns` and `srv` sources have these, and others none."""
        return self._with(self._registered, answers)

    def _with(self, registered: dict[str, tuple[Endpoint, ...]], resolved: Mapping[Question, Resolved]) -> MeshConfig:
        config = self.model_copy()
        config._registered, config._resolved = registered, resolved
        config._endpoints = dict(self._endpoints)
        for name, parts in self._parts.items():
            config._endpoints[name] = assembled(parts, registered.get(name, ()), resolved)
        return config

    def raw_policy(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """(`defaults`, canonical name → service) as plain data as they are written; the caller's own copy.

        A `file` source stands as a `static` one with what the file has, so that it says the same elsewhere.
        """
        data = copy.deepcopy(self._document.data or {})
        services = {canonical_name(key): service for key, service in data.get("services", {}).items()}
        for (_, key, _, index), entries in self._file_entries.items():
            services[canonical_name(str(key))]["endpoints"][index] = {"static": copy.deepcopy(entries)}
        return data.get("defaults", {}), services

    def route_targets(self, service: str) -> tuple[str, ...]:
        """The services that the routes of an owner name as backends or mirrors, without itself; canonical, sorted."""
        namespace, owner = service.partition(".")[2] or "default", self.owner(service)
        routes = owner.routes if owner is not None else ()
        named = {b.service for route in routes for b in route.backends if b.service is not None}
        named |= {m.service for route in routes for m in route.mirror or () if m.service is not None}
        found = {self.canonical(name, namespace) for name in named} - {service}
        return tuple(sorted(name for name in found if name is not None))


def resolve(known: Mapping[str, Any], name: str, namespace: str) -> str | None:
    """The canonical name in `known` that `name` means for a caller of `namespace`, or None."""
    if "." in name:
        return name if name in known else None
    here = f"{name}.{namespace}"
    return here if here in known else canonical_name(name) if canonical_name(name) in known else None


def number_of(content: Any) -> int:
    """48 bits of SHA-256 of plain data."""
    return int.from_bytes(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()[:6])


def _content(of: Endpoint) -> list[Any]:
    return [of.host, of.port, of.zone, of.weight, dict(of.labels), of.absent]
