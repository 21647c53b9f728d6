"""How a service stands on a host: the files of a real enrolment, whole and in every way that they go wrong."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshlib.cli.standing import Standing, enrolled, standing_of
from meshlib.config import MeshConfig, load_config
from meshlib.discovery.fragment import Signed
from meshlib.discovery.snapshot_file import write_snapshot
from meshlib.identity.ca import CertificateAuthority
from meshlib.identity.dev import DevSource
from meshlib.identity.enrolment import Enrolment
from meshlib.identity.svid import Svid, TrustBundle

from .config_service import TRUST_DOMAIN, ConfigService, config_service

DAY_S = 86_400.0


@dataclass
class Host:
    """A host where orders.default has enrolled and followed the policy."""

    mesh: MeshConfig
    folder: Path
    svid: Svid
    bundle: TrustBundle
    signed: list[Signed]

    def standing(self, after_s: float = 0.0, service: str = "orders") -> Standing:
        """That of orders, so many seconds after the certificate begins."""
        return standing_of(self.mesh, service, self.svid.not_before + 60 + after_s)

    def save(self, svid: Svid, bundle: TrustBundle) -> None:
        """Other files in the place of those that are there."""
        Enrolment(self.folder, TRUST_DOMAIN, svid.id).save(svid, bundle)


@pytest.fixture(scope="module")
def enrolment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Svid, TrustBundle, list[Signed], str]:
    """What a real config service gives to a process: certificate, roots, signed fragments; and its mesh.yaml."""
    with config_service(tmp_path_factory.mktemp("service")) as service:
        svid, bundle = service.enrol("orders.default", "first")
        signed = fragments(service)
        return svid, bundle, signed, service.mesh_file.read_text()


def fragments(service: ConfigService) -> list[Signed]:
    """What a process of orders follows."""
    with service.process("orders.default", "o-1") as process:
        process.poll("inventory.default")
        told = process.reply
    return [Signed(one["payload"], one["signature"], told["signer"]) for one in told["fragments"]]


@pytest.fixture
def host(tmp_path: Path, enrolment: tuple[Svid, TrustBundle, list[Signed], str]) -> Host:
    """Whole."""
    svid, bundle, signed, mesh_text = enrolment
    (tmp_path / "mesh.yaml").write_text(mesh_text)
    folder = tmp_path / ".meshlib" / "orders.default"
    kept = Enrolment(folder, TRUST_DOMAIN, svid.id)
    with kept.locked():
        kept.save(svid, bundle)
    write_snapshot(folder, signed)
    return Host(load_config(tmp_path / "mesh.yaml"), folder, svid, bundle, signed)


def test_a_whole_one_can_start_offline(host: Host) -> None:
    """Id, certificate, the root that issued it, every resource of the snapshot with its version; nothing is wrong."""
    standing = host.standing()
    assert standing.problems == []
    assert (standing.id, standing.source) == ("spiffe://shop.dev/ns/default/sa/orders", "control")
    assert standing.svid is not None
    assert standing.svid.serial == host.svid.serial
    assert [root.is_issuer for root in standing.roots()] == [True]
    assert [resource for resource, _, _ in standing.resources] == [
        "defaults", "endpoints/inventory.default", "service/inventory.default", "service/orders.default", "trust",
    ]  # fmt: skip
    assert standing.snapshot_at == os.stat(host.folder / "snapshot.json").st_mtime
    assert enrolled(host.folder.parent) == ["orders.default"]


def test_to_look_changes_nothing(host: Host) -> None:
    """No file is made, written or removed, not even for a service that is not there."""
    before = {path: path.stat().st_mtime_ns for path in host.folder.parent.rglob("*")}
    host.standing()
    host.standing(service="payments")
    assert {path: path.stat().st_mtime_ns for path in host.folder.parent.rglob("*")} == before


def test_a_stranger_is_told_how_to_enrol(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """No enrolment is a problem with the way out, unless there is a token to enrol with."""
    (said,) = host.standing(service="payments").problems
    assert "`meshlib token create payments.default`" in said
    monkeypatch.setenv("MESHLIB_TOKEN_FILE", str(host.folder / "svid.pem"))
    standing = host.standing(service="payments")
    assert (standing.problems, "enrols with the token" in standing.would) == ([], True)
    assert standing.roots() == []


@pytest.mark.parametrize(
    ("after_s", "said"),
    [
        (-120.0, "set the clock of this machine"),
        (DAY_S - 600, "and was not renewed"),
        (DAY_S + 7200, "the certificate ended 2h ago"),
    ],
)
def test_a_certificate_has_its_time(host: Host, after_s: float, said: str) -> None:
    """Before it begins, long past the time to renew it, and past its end: each is a problem with what to do."""
    assert said in host.standing(after_s).problems[0]


def test_a_root_that_is_not_believed_makes_the_certificate_nothing(host: Host) -> None:
    """Another bundle beside the certificate: no path to it; and of the snapshot nothing would be used."""
    other = CertificateAuthority.create(TRUST_DOMAIN, now=host.svid.not_before + 60)
    host.save(host.svid, TrustBundle(TRUST_DOMAIN, other.certificate_pem))
    standing = host.standing()
    assert len(standing.problems) == 2
    assert "no identity" in standing.problems[0]
    assert f"would not use {len(host.signed)} of {len(host.signed)} parts" in standing.problems[1]
    assert [root.is_issuer for root in standing.roots()] == [False]


def test_damaged_and_open_files_are_what_a_start_would_say(host: Host) -> None:
    """The same sentences as in a process: another's key, a mode."""
    (host.folder / "svid.pem").chmod(0o644)
    assert "chmod 600" in host.standing().problems[0]
    (host.folder / "svid.pem").chmod(0o600)
    (host.folder / "svid.pem").write_text("")
    assert "no usable enrolment" in host.standing().problems[0]


def test_a_revoked_certificate_is_found_in_the_snapshot(host: Host, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The snapshot of a process that still runs says that the enrolment is revoked."""
    with config_service(tmp_path_factory.mktemp("revoking")) as service:
        svid, bundle = service.enrol("orders.default", "first")
        service.ask("POST", "/v1/ca/revoke", {"serial": f"{svid.serial:x}"})
        signed = fragments(service)
    host.save(svid, bundle)
    (host.folder / "snapshot.json").unlink()
    write_snapshot(host.folder, signed)
    (said,) = standing_of(host.mesh, "orders", svid.not_before + 61).problems
    assert f"certificate {svid.serial:x} has been revoked" in said


def test_a_snapshot_that_is_not_there_or_not_whole(host: Host, tmp_path: Path) -> None:
    """None: a problem, unless the file is the fallback. Damaged, forged: what of it would not be used, and why."""
    file = host.folder / "snapshot.json"
    host.signed[0] = Signed(host.signed[0].payload.replace("{", "{ ", 1), *vars_of(host.signed[0]))
    file.unlink()
    write_snapshot(host.folder, host.signed)
    (said,) = host.standing().problems
    assert f"would not use 1 of {len(host.signed)} parts of the snapshot: the signature" in said
    file.write_text("{")
    assert "cannot be read as a snapshot" in host.standing().problems[0]
    file.unlink()
    assert "there is no snapshot" in host.standing().problems[0]
    (tmp_path / "mesh.yaml").write_text(
        (tmp_path / "mesh.yaml").read_text().replace("control: {", "control: {fallback: file, ")
    )
    host.mesh = load_config(tmp_path / "mesh.yaml")
    assert host.standing().problems == []


def vars_of(signed: Signed) -> tuple[str, str]:
    """What a fragment has beside its payload."""
    return signed.signature, signed.signer


def test_a_local_authority_needs_no_enrolment(tmp_path: Path) -> None:
    """With `identity: {source: dev}`: the roots of the folder, once there is one; a damaged one is a problem."""
    (tmp_path / "mesh.yaml").write_text("version: 1\nmesh: shop\n")
    mesh = load_config(tmp_path / "mesh.yaml")
    before = standing_of(mesh, "orders", 0.0)
    assert (before.source, before.problems, before.roots()) == ("dev", [], [])
    DevSource(tmp_path / ".meshlib", TRUST_DOMAIN, "orders").fetch()
    assert len(standing_of(mesh, "orders", 0.0).roots()) == 1
    (tmp_path / ".meshlib/dev-ca/bundle.pem").write_text("")
    assert standing_of(mesh, "orders", 0.0).problems != []


def test_a_name_that_is_none_is_refused(host: Host) -> None:
    """ValueError, as in a process."""
    with pytest.raises(ValueError, match="Orders"):
        host.standing(service="Orders")
