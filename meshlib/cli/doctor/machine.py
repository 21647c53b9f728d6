"""What is installed and set on this machine: Python, distributions, libraries, limits, the environment.

The import name `meshlib` belongs to two distributions on PyPI: ours, `service-meshlib`, and `meshlib`, a library of 3-D
geometry. pip installs both into one folder, file by file over each other, so at most one of them can be there.
"""

from __future__ import annotations

import difflib
import logging
import re
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec

from ...errors import ConfigError
from .finding import Finding, ok, problem, warning

DISTRIBUTION, IMPORT_NAME = "service-meshlib", "meshlib"

PYTHON_MIN = (3, 11)
"""The oldest Python that meshlib runs on."""

OPEN_FILES_MIN = 4096
"""With a lower soft limit of open files a busy server, or a config service of many processes, refuses connections."""

EXTRAS = {
    "server": "serving",
    "cli": "the command line",
    "control": "the config service",
    "grpc": "channels and servers of gRPC",
    "dns": "endpoints by DNS",
    "regex": "regular expressions in routes",
    "otel": "exporting spans",
    "resilience": "tenacity and pybreaker",
    "demo": "meshlib demo",
}
"""The extras that this release uses, and what each is for."""

VARIABLES = (
    "MESHLIB_ADVERTISE", "MESHLIB_CONFIG", "MESHLIB_CONTROL_URLS", "MESHLIB_GRPC_FAST_LEAF", "MESHLIB_INSTANCE",
    "MESHLIB_LABELS", "MESHLIB_LOG",
    "MESHLIB_OPERATOR_TOKEN_FILE", "MESHLIB_SERVICE", "MESHLIB_STATE_DIR", "MESHLIB_TOKEN_FILE", "MESHLIB_ZONE",
)  # fmt: skip
"""Every variable that this release reads."""

_PREFIX = "MESHLIB_"
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[(?P<extras>[^]]*)\])?.*extra == ['\"](?P<extra>[^'\"]+)['\"]")


def machine(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Everything that is to be said of this machine without a mesh.yaml."""
    yield _python()
    yield _distribution()
    yield _extras()
    yield _uvloop()
    yield from _open_files()
    yield from _environment(environ)


def _python() -> Finding:
    version, tls = ".".join(map(str, sys.version_info[:3])), ssl.OPENSSL_VERSION.partition("  ")[0]
    if sys.version_info < PYTHON_MIN:
        return problem("python", f"{version} is too old: install Python {'.'.join(map(str, PYTHON_MIN))} or newer")
    if not ssl.HAS_TLSv1_3:
        return problem("python", f"{version} has {tls}, without TLS 1.3: install a Python with OpenSSL 1.1.1 or newer")
    return ok("python", f"{version}, {tls}")


def _distribution() -> Finding:
    providers = {IMPORT_NAME} if _version(IMPORT_NAME) else set()
    providers.update(metadata.packages_distributions().get(IMPORT_NAME, ()))
    if others := sorted(providers - {DISTRIBUTION}):
        named = ", ".join(f"{name} {_version(name)}" for name in others)
        return problem(
            "distribution",
            f"{named} is installed too, with the same import name ({IMPORT_NAME} on PyPI is a 3-D geometry library): "
            f"pip uninstall {' '.join(others)}, pip install --force-reinstall {DISTRIBUTION}; or an environment each",
        )
    if version := _version(DISTRIBUTION):
        return ok("distribution", f"{DISTRIBUTION} {version}")
    return warning("distribution", f"{DISTRIBUTION} is not installed, only imported: pip install {DISTRIBUTION}")


def _extras() -> Finding:
    missing = {extra: gone for extra in EXTRAS if (gone := _missing(extra, frozenset()))}
    if not missing:
        return ok("extras", f"{', '.join(EXTRAS)} are installed")
    lacking = "; ".join(f"{extra} ({EXTRAS[extra]}) lacks {', '.join(gone)}" for extra, gone in missing.items())
    return warning("extras", f"{lacking}. If wanted here: pip install '{DISTRIBUTION}[{','.join(missing)}]'")


def _missing(extra: str, within: frozenset[str]) -> list[str]:
    """What an extra, and those that it names, require and is not installed."""
    found: list[str] = []
    for line in _requirements():
        match = _REQUIREMENT.match(line)
        if match is None or match["extra"] != extra:
            continue
        if match["name"] != DISTRIBUTION:
            found += [match["name"]] if not _version(match["name"]) else []
            continue
        for named in map(str.strip, (match["extras"] or "").split(",")):
            if named not in within:
                found += _missing(named, within | {extra})
    return list(dict.fromkeys(found))


def _requirements() -> list[str]:
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _uvloop() -> Finding:
    if find_spec("uvloop") is not None:
        return ok("uvloop", "installed; meshlib control uses it")
    return warning("uvloop", "not installed: meshlib control serves fewer processes without it: pip install uvloop")


def _open_files() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_MIN:
        most = "" if hard == resource.RLIM_INFINITY else f" (at most {hard})"
        said = f"at most {soft}; each connection is one: ulimit -n 65536{most}, or LimitNOFILE= of systemd"
        yield warning("open files", said)
    else:
        yield ok("open files", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}")


def _environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    known = [name for name in VARIABLES if environ.get(name)]
    strange = sorted(name for name in environ if name.startswith(_PREFIX) and name not in VARIABLES)
    wrong = list(_wrong_values(environ))
    if known and not wrong:
        yield ok("environment", ", ".join(known))  # not their values: a token may have got into one
    for said in wrong:
        yield problem("environment", said)
    for name in strange:
        close = difflib.get_close_matches(name.removeprefix(_PREFIX), [known[len(_PREFIX) :] for known in VARIABLES], 1)
        hint = f"did you mean {_PREFIX}{close[0]}?" if close else "unset it"
        yield warning("environment", f"{name} is set, and nothing reads it: {hint}")


def _wrong_values(environ: Mapping[str, str]) -> Iterator[str]:
    from ...config.environment import control_urls, labels, zone

    readers: tuple[Callable[[Mapping[str, str]], object], ...] = (control_urls, labels, zone)
    for read in readers:
        try:
            read(environ)
        except ConfigError as error:
            yield str(error)
    level = environ.get("MESHLIB_LOG", "").upper()
    if level and not isinstance(logging.getLevelName(level), int):
        yield f"MESHLIB_LOG={level}: a level is DEBUG, INFO, WARNING or ERROR"
