"""The watched mesh.yaml: read when it has changed and settled, told as a policy that may be published, or as why not.

A file that does not validate is told and kept out, as often as it is edited. What is kept in the store is the text as
it was written, or, where several files make it, the same as one JSON document: it must be complete without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..agent import TICK_S, Agent, FileWatch
from ..config import MeshConfig, load_config, parse_config
from ..config.units import format_duration
from ..errors import ConfigError


class Read(NamedTuple):
    """A policy: validated, where it came from, and the text by which it can be had again without any file."""

    config: MeshConfig
    source: str
    document: str


def read_policy(path: Path) -> Read:
    """The policy in a file, or in the `*.yaml` files of a directory. ConfigError."""
    config = load_config(path)
    if path.is_dir() or len(config.files) > 1:
        return Read(config, str(path), complete_text(config))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: changed while it was read: {error}") from None
    return Read(parse_config(text, str(path)), str(path), text)


def parse_policy(document: str, source: str) -> Read:
    """The policy in a text that came from elsewhere: it may not name files. ConfigError."""
    return Read(parse_config(document, source, local=False), source, document)


def complete_text(config: MeshConfig) -> str:
    """A configuration as one JSON text, which `parse_policy` reads."""
    defaults, services = config.raw_policy()
    bootstrap: dict[str, Any] = {
        "version": 1,
        "mesh": config.mesh,
        "trust_domain": config.trust_domain,
        "state_dir": config.state_dir,
        "policy_source": config.policy_source,
        "ca": {"leaf_ttl": format_duration(config.ca.leaf_ttl), "root_ttl": format_duration(config.ca.root_ttl)},
    }
    if config.control is not None:
        bootstrap |= {"control": {"urls": list(config.control.urls)}, "identity": {"source": "control"}}
    return json.dumps({**bootstrap, "defaults": defaults, "services": services}, indent=1, ensure_ascii=False)


class PolicyWatch:
    """Looks at the files of a policy every `every_s` seconds, on a thread, and tells each settled change by
    `tell(Read or ConfigError)`, on that thread.
    """

    def __init__(self, path: Path, tell: Callable[[Read | ConfigError], None], every_s: float = TICK_S) -> None:
        self._path, self._tell, self._every_s = path, tell, every_s
        self._files, self._good = FileWatch([path]), []  # type: FileWatch, list[Path]
        self._agent: Agent | None = None

    def follow(self, read: Read | ConfigError) -> None:
        """Look at the files that this one is made of, too; where it is broken, at those of the last good one as well.
        What changed meanwhile is still told.
        """
        if isinstance(read, ConfigError):
            also = [*self._good, *read.files]
        else:
            also = self._good = list(read.config.files)
        self._files.follow(dict.fromkeys([self._path, *also]))

    def start(self) -> None:
        """Begin to look."""
        self._agent = Agent(self.look, self._every_s)

    def stop(self) -> None:
        """Stop; nothing is told any more, once this has returned, but by a look that is under way."""
        if self._agent is not None:
            self._agent.stop()

    def look(self) -> None:
        """One look."""
        if not self._files.changed():
            return
        read: Read | ConfigError
        try:
            read = read_policy(self._path)
        except ConfigError as error:
            read = error
        self.follow(read)
        self._tell(read)
