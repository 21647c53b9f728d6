"""The operator's access: which token, which service, and what is said where it is not to be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshlib.cli import operator
from meshlib.control_link import ControlRefusal
from meshlib.errors import IdentityError, MeshError, NoHealthyEndpoint, TransportError
from meshlib.identity import private_folder
from meshlib.identity.authority_file import AuthorityFile
from meshlib.identity.join_token import JoinToken

from .config_service import MESH, ConfigService, config_service, run

ASK = ("token", "list")


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a mesh.yaml whose config service does not run, and for which nobody waits."""
    (tmp_path / "mesh.yaml").write_text(MESH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(operator, "PATIENCE_S", 0.0)
    return tmp_path


def a_token(folder: Path, name: str = "a.token") -> tuple[JoinToken, str]:
    """A well-formed token that nobody knows, and its file."""
    token = JoinToken.create("0" * 64)
    (folder / name).write_text(f"{token}\n")
    return token, str(folder / name)


def test_the_token_is_the_service_s_own_file_on_its_host(service: ConfigService) -> None:
    """Without any option: <state_dir>/control/operator-token."""
    assert run(*ASK).exit_code == 0


def test_an_argument_wins_over_the_environment_and_that_over_the_default(
    service: ConfigService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """--token-file, MESHLIB_OPERATOR_TOKEN_FILE, the default: the first that is named counts, also where it is void."""
    _, void = a_token(tmp_path)
    monkeypatch.setenv("MESHLIB_OPERATOR_TOKEN_FILE", void)
    assert run(*ASK).exit_code == 1
    assert run(*ASK, "--token-file", str(service.token_file)).exit_code == 0
    monkeypatch.setenv("MESHLIB_OPERATOR_TOKEN_FILE", str(service.token_file))
    assert run(*ASK).exit_code == 0
    assert run(*ASK, "--token-file", void).exit_code == 1


def test_without_a_token_it_is_said_where_one_is(alone: Path) -> None:
    """Exit code 2, the default that is not there, and both ways to name another."""
    told = run(*ASK)
    assert (told.exit_code, told.stdout) == (2, "")
    assert str(alone / ".meshlib/control/operator-token") in told.stderr
    assert "--token-file or MESHLIB_OPERATOR_TOKEN_FILE" in told.stderr


def test_the_default_file_is_waited_for(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`meshlib control &` and a command behind it: the first start is about to write the file."""
    monkeypatch.setattr(operator, "PATIENCE_S", 60.0)
    monkeypatch.setattr(operator, "AGAIN_S", 0.001)
    folder, looks = alone / ".meshlib" / "control", []  # type: Path, list[bool | None]
    folder.mkdir(parents=True)
    is_readable = operator._is_readable

    def looked(file: Path) -> bool | None:
        looks.append(is_readable(file))
        if len(looks) == 2:
            private_folder.replace(file, f"{JoinToken.create('0' * 64)}\n".encode())
        return looks[-1]

    monkeypatch.setattr(operator, "_is_readable", looked)
    assert run(*ASK).exit_code == 1, "it got as far as asking a service that is not there"
    assert looks == [None, None, True]


def test_a_file_of_somebody_else_is_not_waited_for(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there and will not be for this user: at once."""
    monkeypatch.setattr(operator, "PATIENCE_S", 60.0)
    (alone / ".meshlib").write_text("in the way of a folder")
    assert run(*ASK).exit_code == 2


def test_what_is_no_token_is_refused_and_never_shown(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file; a variable that holds the token itself and not the name of its file. Exit code 2, no secret."""
    token, file = a_token(alone)
    Path(file).write_text(str(token)[:-1])
    damaged = run(*ASK, "--token-file", file)
    monkeypatch.setenv("MESHLIB_OPERATOR_TOKEN_FILE", str(token))
    mistaken = run(*ASK)
    for told in (damaged, mistaken):
        assert (told.exit_code, token.secret in told.output) == (2, False)
    assert "holds no operator's token" in damaged.stderr
    assert "is the path" in mistaken.stderr


def test_a_mesh_without_a_config_service_has_nobody_to_ask(alone: Path) -> None:
    """Exit code 2, and both ways to say where one is."""
    (alone / "mesh.yaml").write_text("version: 1\nmesh: shop\n")
    told = run(*ASK)
    assert told.exit_code == 2
    assert "`control`" in told.stderr
    assert "MESHLIB_CONTROL_URLS" in told.stderr


def test_a_service_that_is_away_is_said_to_be(alone: Path) -> None:
    """Exit code 1 with its URL and what to look at, once it was waited for."""
    _, file = a_token(alone)
    told = run(*ASK, "--token-file", file)
    assert (told.exit_code, told.stdout) == (1, "")
    assert "Is `meshlib control` running at https://127.0.0.1:9" in told.stderr


def test_a_void_token_is_said_to_be(service: ConfigService, tmp_path: Path) -> None:
    """Of the right root, but not the operator's: exit code 1, whose file it was, and where the current one is."""
    void = JoinToken.create(service.token.root_sha256)
    (tmp_path / "void").write_text(str(void))
    told = run(*ASK, "--token-file", str(tmp_path / "void"))
    assert told.exit_code == 1
    assert f"401: this bearer token is not the operator's\nThe token was that of {tmp_path / 'void'}." in told.stderr
    assert "<state_dir>/control/operator-token" in told.stderr
    assert void.secret not in told.output


def test_who_is_not_proved_gets_no_token(service: ConfigService, tmp_path: Path) -> None:
    """A service with another root: exit code 1 at once, the token is not sent, and what to do."""
    token, file = a_token(tmp_path)
    told = run(*ASK, "--token-file", file)
    assert told.exit_code == 1
    assert "so the token was not sent" in told.stderr
    assert "copy it, or name it by --token-file" in told.stderr
    assert token.secret not in told.output


def test_a_token_outlives_one_rotation_of_the_root_and_its_file_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy works after one rotation; after two it names a root that nobody proves, and the service's own file works."""
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "copy"
    authority = AuthorityFile(tmp_path / ".meshlib/control/ca")
    for rotation, exit_code in enumerate((0, 0, 1)):
        with config_service(tmp_path) as service:
            monkeypatch.setenv("MESHLIB_CONTROL_URLS", service.url)
            if not rotation:
                copy.write_text(service.token_file.read_text())
            assert run(*ASK).exit_code == 0
            told = run(*ASK, "--token-file", str(copy))
            assert told.exit_code == exit_code, told.output
        coming = authority.step(lambda roots: roots.propose(roots.signer.not_before + 60))
        authority.step(lambda roots, coming=coming: roots.promote(coming))
    assert "was the root replaced?" in told.stderr


def test_a_broken_policy_keeps_nobody_from_asking(service: ConfigService) -> None:
    """The bootstrap part of the file is enough, and that is said; a broken bootstrap part is not."""
    service.mesh_file.write_text(MESH + "defaults: {timeuot: 1s}\n")
    told = run(*ASK)
    assert (told.exit_code, told.stdout) == (0, "there are no join tokens\n")
    assert told.stderr == "mesh.yaml is not valid, and only its bootstrap part is used: meshlib check mesh.yaml\n"
    service.mesh_file.write_text(MESH + "admin: {lisen: 1}\n")
    assert run(*ASK).exit_code == 1
    assert "mesh.yaml:8:9: admin.lisen: unknown field" in run(*ASK).stderr


class Scripted:
    """A link on which each call ends in the next of these, the last for ever; how often it was asked."""

    urls = ("https://a:1",)

    def __init__(self, *ends: MeshError | None) -> None:
        self.ends, self.asked = list(ends), 0

    def ask(self, *_: Any, **__: Any) -> dict[str, Any]:
        """The next."""
        self.asked += 1
        if end := self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]:
            raise end
        return {"tokens": []}


def refused_connection() -> MeshError:
    """What comes of a port where nobody listens."""
    return TransportError("refused", phase="connect", cause="refused", sent=False)


def test_a_service_that_is_starting_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again while nobody answers; and what it then says is the answer."""
    monkeypatch.setattr(operator, "AGAIN_S", 0.001)
    link = Scripted(refused_connection(), NoHealthyEndpoint("control", {}), None)
    assert operator.Operator(link, JoinToken.create("0" * 64), Path("t")).ask("GET", "/v1/tokens") == {"tokens": []}
    assert link.asked == 3


@pytest.mark.parametrize(
    "error",
    [
        ControlRefusal("/v1/tokens", 503, {"message": "full"}),
        IdentityError("somebody else"),
        TransportError("reset", phase="read", cause="reset", sent=True),
    ],
)
def test_an_answer_is_not_waited_out(error: MeshError) -> None:
    """A refusal, somebody else, what may have been done: exit code 1 at once."""
    link = Scripted(error)
    with pytest.raises(SystemExit) as ended:
        operator.Operator(link, JoinToken.create("0" * 64), Path("t")).ask("GET", "/v1/tokens")
    assert (ended.value.code, link.asked) == (1, 1)
