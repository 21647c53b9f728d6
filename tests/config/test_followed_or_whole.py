"""A mesh.yaml that the config service reads, too: what a process starts with while its policy is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshlib import Mesh
from meshlib.config import followed_or_whole
from meshlib.errors import ConfigError

BROKEN = "version: 1\nmesh: shop\ndefaults: {timeot: 1s}\n"
CONTROL = "control: {urls: ['https://127.0.0.1:7443']%s}\n"


def written(folder: Path, text: str) -> Path:
    (folder / "mesh.yaml").write_text(text)
    return folder / "mesh.yaml"


def test_a_broken_policy_keeps_nobody_from_the_config_service(tmp_path: Path) -> None:
    """It is not this file's that is in force; what is wrong is told."""
    config, error = followed_or_whole(written(tmp_path, BROKEN + CONTROL % ""), {"state_dir": "elsewhere"})
    assert config.control is not None
    assert (config.mesh, config.state_dir) == ("shop", "elsewhere")
    assert "timeot" in str(error)


@pytest.mark.parametrize(
    "text", [BROKEN, BROKEN + CONTROL % ", fallback: file", BROKEN + "control: {urls: nowhere}\n", "mesh: ["]
)
def test_a_broken_policy_that_would_be_in_force_is_refused(tmp_path: Path, text: str) -> None:
    """Without a config service, or with this file as what to fall back to; and where it says not how to reach one."""
    with pytest.raises(ConfigError):
        followed_or_whole(written(tmp_path, text))


def test_a_valid_file_is_taken_whole(tmp_path: Path) -> None:
    """With its policy."""
    config, error = followed_or_whole(written(tmp_path, BROKEN.replace("timeot", "timeout") + CONTROL % ""))
    assert (config.defaults.timeout, error) == (1.0, None)


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "MESHLIB_TOKEN_FILE"), ("nowhere", "cannot be read"), ("garbage", "this is no join token")],
)
def test_a_start_without_a_usable_token_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, said: str
) -> None:
    """At once, with what to do: no config service is needed to see it."""
    (tmp_path / "garbage").write_text("garbage")
    monkeypatch.delenv("MESHLIB_TOKEN_FILE", raising=False)
    if token:
        monkeypatch.setenv("MESHLIB_TOKEN_FILE", str(tmp_path / token))
    mesh = Mesh("orders", written(tmp_path, "version: 1\nmesh: shop\n" + CONTROL % ""))
    with pytest.raises(ConfigError, match=f"(?s){said}.*meshlib token create|meshlib token create.*{said}"):
        mesh._engine.start()


def test_a_state_dir_that_others_can_enter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that mends it."""
    (tmp_path / ".meshlib").mkdir(mode=0o755)
    monkeypatch.setenv("MESHLIB_TOKEN_FILE", "any")
    with pytest.raises(ConfigError, match="chmod 700"):
        Mesh("orders", written(tmp_path, "version: 1\nmesh: shop\n" + CONTROL % ""))._engine.start()
