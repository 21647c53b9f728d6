"""Files, directories, endpoint files, dicts: what becomes a MeshConfig, and what is said when it cannot."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from meshlib.config import MeshConfig, config_of, load_config, parse_config
from meshlib.config.load import MAX_FILES
from meshlib.config.problems import MAX_PROBLEMS
from meshlib.config.reader import read
from meshlib.endpoint import Endpoint
from meshlib.errors import ConfigError

from .documents import BROKEN, FIVE_MISTAKES, FULL

HEAD = "version: 1\nmesh: m\n"


def refused(value: object, overrides: dict[str, object] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_of(value, overrides)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


def test_a_full_file() -> None:
    """Every field is read; durations are seconds, shares fractions, sizes bytes; short forms are written out."""
    config = parse_config(FULL, "mesh.yaml")
    service = config.services["inventory.default"]
    assert (config.version, config.mesh, config.trust_domain, config.admin.listen) == (
        1,
        "shop",
        "shop.dev",
        "127.0.0.1:0",
    )
    assert config.telemetry.tracing.sample == 0.01
    assert config.defaults.timeout == 2.0
    assert config.defaults.retries.retry_on == ("connect_failure", "reset", "gateway_error", "5xx", 503)
    assert config.defaults.retries.budget.percent == 0.2
    assert config.defaults.limits.max_request_body == 2**20
    assert config.defaults.limits.max_response_body == 10**7
    assert service.connection_pool.max_age == 1800.0
    beta, main = service.routes
    assert beta.matches[0].method == ("GET",)
    assert beta.matches[0].headers["x-beta"].exact == "1"
    assert beta.matches[0].headers["x-old"].present is False
    assert [(b.service, b.subset, b.weight) for b in main.backends] == [(None, "v1", 90), (None, "v2", 10)]
    assert (main.timeout, main.stream_idle_timeout, main.idempotent) == (0.4, 30.0, True)
    assert config.names() == ("inventory.default", "orders.default", "orders.stock")


def test_the_smallest_file() -> None:
    """Only version and mesh are required."""
    config = parse_config(HEAD)
    assert (config.trust_domain, config.state_dir, config.identity.source, config.names()) == (
        "m.dev",
        ".meshlib",
        "dev",
        (),
    )


def test_it_is_frozen() -> None:
    """Nobody can change a configuration in force."""
    config = parse_config(FULL)
    with pytest.raises(ValueError, match="frozen"):
        config.mesh = "other"
    with pytest.raises(ValueError, match="frozen"):
        config.services["inventory.default"].retries.max_retries = 9


def test_endpoints_are_merged_in_order() -> None:
    """All sources of a service, in order; a service without any, or unknown, has none."""
    config = parse_config(FULL)
    assert config.endpoints("inventory.default") == (
        Endpoint("127.0.0.1", 8081),
        Endpoint("127.0.0.1", 8082, "a", 3, {"version": "2"}),
        Endpoint("::1", 8083),
    )
    assert config.endpoints("orders.default") == config.endpoints("nobody.default") == ()


def test_canonical_names() -> None:
    """A bare name means the caller's own namespace, then default; an unknown one is None."""
    config = parse_config(FULL)
    assert config.canonical("orders") == "orders.default"
    assert config.canonical("orders", "stock") == "orders.stock"
    assert config.canonical("inventory", "stock") == "inventory.default"
    assert config.canonical("orders.stock") == "orders.stock"
    assert [config.canonical(name) for name in ("inventory.stock", "nobody", "a.b.c", "")] == [None] * 4


def test_text_from_elsewhere_names_no_files(tmp_path: Path) -> None:
    """`local` False: a file source is a mistake that says what to do, and no file is looked at."""
    text = HEAD + "services: {a: {endpoints: [{file: eps.yaml}]}}\n"
    with pytest.raises(ConfigError) as caught:
        parse_config(text, str(tmp_path / "policy"), local=False)
    assert [problem.message for problem in caught.value.problems] == [
        "this policy is not a file of this machine, and names none; write its content under static"
    ]
    assert parse_config(HEAD, local=False).names() == ()


def test_places() -> None:
    """`place` says file:line, under the written or the canonical name of a service."""
    config = parse_config(FULL, "conf/mesh.yaml")
    line = FULL.splitlines().index("      - name: main") + 1
    for name in ("inventory", "inventory.default"):
        assert config.place(("services", name, "routes", 1)) == f"conf/mesh.yaml:{line}"
    line = FULL.splitlines().index("  timeout: 2s") + 1
    assert config.place(("defaults", "timeout")) == f"conf/mesh.yaml:{line}"


def test_a_file(tmp_path: Path) -> None:
    """load_config reads one file; `files` is what a watcher watches, `directory` what paths are relative to."""
    path = tmp_path / "mesh.yaml"
    path.write_text(FULL)
    config = load_config(path)
    assert (config.files, config.directory) == ((path,), tmp_path)
    assert load_config(str(path)).version_number == config.version_number == parse_config(FULL).version_number
    path.write_text(FIVE_MISTAKES)
    assert refused(path) == [f"{tmp_path}/{place}: {sentence}" for place, sentence in BROKEN.items()]


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not there, or is no file, is a sentence."""
    monkeypatch.chdir(tmp_path)
    hint = "name a mesh.yaml or a directory of them"
    assert refused("mesh.yaml") == [f"mesh.yaml: cannot be read: No such file or directory; {hint}"]
    assert refused("mesh.yaml/x\0") == [f"mesh.yaml/x\0: cannot be read: embedded null byte; {hint}"]
    assert refused(tmp_path) == [f"{tmp_path}: a directory of a mesh has from 1 to {MAX_FILES} *.yaml files, not 0"]


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """A pipe, a device or a folder in the place of a file is a sentence at once, not a wait for somebody to write."""
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "part.yaml")
    hint = "name a mesh.yaml or a directory of them"
    odd = "it is a pipe or a device, not a regular file"
    assert refused(tmp_path / "pipe") == [f"{tmp_path}/pipe: cannot be read: {odd}; {hint}"]
    assert refused(tmp_path) == [f"{tmp_path}/part.yaml: cannot be read: {odd}; {hint}"]
    (tmp_path / "part.yaml").unlink()
    for name, why in (("pipe", odd), ("/dev/zero", odd), (".", "Is a directory")):
        file = tmp_path / "mesh.yaml"
        file.write_text(HEAD + f"services: {{a: {{endpoints: [{{file: {name}}}]}}}}\n")
        assert refused(file) == [f"{file}:3:35: services.a.endpoints[0].file: '{name}' cannot be read: {why}"]
    file.unlink()
    (tmp_path / "folder.yaml").mkdir()
    assert refused(tmp_path) == [f"{tmp_path}/folder.yaml: cannot be read: Is a directory; {hint}"]


@pytest.mark.parametrize("call", ["open", "listdir", "stat"])
def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A file, a directory, or the way to it that this user may not enter is a sentence with the reason."""

    def denied(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    given = tmp_path if call == "listdir" else tmp_path / "mesh.yaml"
    (tmp_path / "mesh.yaml").write_text(HEAD)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, denied)
        lines = refused(given)
    assert lines == [f"{given}: cannot be read: Permission denied; name a mesh.yaml or a directory of them"]


def test_relative_paths_survive_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`files` and `directory` are absolute; messages name the file as it was given."""
    (tmp_path / "mesh.yaml").write_text(HEAD)
    monkeypatch.chdir(tmp_path)
    config = load_config("mesh.yaml")
    assert (config.files, config.directory) == ((tmp_path / "mesh.yaml",), tmp_path)
    assert config.place(("mesh",)) == "mesh.yaml:2"


def directory(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def test_a_directory(tmp_path: Path) -> None:
    """Each team has a file; services are put together, references go across, hidden files are left out."""
    directory(
        tmp_path,
        mesh=HEAD + "defaults: {timeout: 3s}",
        a="version: 1\nservices: {a: {routes: [{name: x, backends: [{service: b}]}]}}",
        b="services:\n  b: {allow_routes_from: [a]}\n",
    )
    (tmp_path / ".hidden.yaml").write_text("[")
    config = load_config(tmp_path)
    assert config.names() == ("a.default", "b.default")
    assert [file.name for file in config.files] == ["a.yaml", "b.yaml", "mesh.yaml"]
    assert config.directory == tmp_path
    assert config.place(("services", "b.default")) == f"{tmp_path}/b.yaml:2"


def test_twice_in_a_directory(tmp_path: Path) -> None:
    """What stands in two files is an error that names both places; so does the same service in two spellings."""
    at = directory(
        tmp_path,
        a=HEAD + "services: {a: {}, b: {}}\n",
        b="version: 1\nmesh: m\nservices: {a: {}, b.default: {}}\n",
    )
    assert refused(at) == [
        f"{at}/b.yaml:2:1: mesh: is already in {at}/a.yaml:2; keep one",
        f"{at}/b.yaml:3:12: services.a: is already in {at}/a.yaml:3; keep one",
        f"{at}/b.yaml:3:19: services.b.default: is the same service as 'b' ({at}/a.yaml:3); keep one",
    ]


def test_a_part_that_cannot_be_read(tmp_path: Path) -> None:
    """Every unreadable part is reported; the rest is not judged without them."""
    at = directory(tmp_path, a="[1]", b="services: {b: {backend: x}}", c="a: [")
    first, second = refused(at)
    assert first == f"{at}/a.yaml:1:1: the file must be a mapping of fields such as `version: 1`, not a list"
    assert second.startswith(f"{at}/c.yaml:2:1: not YAML: ")


def with_endpoints(tmp_path: Path, text: str, name: str = "eps.yaml") -> Path:
    (tmp_path / name).write_text(text)
    source = f"services: {{a: {{endpoints: [{{static: ['127.0.0.1:1']}}, {{file: {name}}}]}}}}\n"
    (tmp_path / "mesh.yaml").write_text(HEAD + source)
    return tmp_path / "mesh.yaml"


def test_endpoint_files(tmp_path: Path) -> None:
    """YAML or JSON, entries as in `static`; the file is watched, and an edit of it is another version."""
    path = with_endpoints(tmp_path, "- 127.0.0.1:2\n- {address: '127.0.0.1:3', weight: 5}\n")
    config = load_config(path)
    assert [(e.address, e.weight) for e in config.endpoints("a.default")] == [
        ("127.0.0.1:1", 1), ("127.0.0.1:2", 1), ("127.0.0.1:3", 5),
    ]  # fmt: skip
    assert config.files == (path, tmp_path / "eps.yaml")
    (tmp_path / "eps.yaml").write_text("- 127.0.0.1:2\n")
    assert load_config(path).version_number != config.version_number
    as_json = load_config(with_endpoints(tmp_path, '["127.0.0.1:4"]', "eps.json"))
    assert [e.port for e in as_json.endpoints("a.default")] == [1, 4]
    assert load_config(with_endpoints(tmp_path, "[]")).endpoints("a.default") == (Endpoint("127.0.0.1", 1),)


def test_mistakes_in_an_endpoint_file(tmp_path: Path) -> None:
    """They carry that file's name and place, beside those of mesh.yaml."""
    path = with_endpoints(tmp_path, "- 127.0.0.1:0\n- {address: '127.0.0.1:1', wait: 1}\n- 10.0.0.1:9\n- ~\n")
    path.write_text(path.read_text() + "zone: x\n")
    eps = f"{tmp_path}/eps.yaml"
    assert refused(path) == [
        f"{eps}:1:3: [0]: '127.0.0.1:0' has no valid port: a port is a number from 1 to 65535",
        f"{eps}:2:13: [1].address: '127.0.0.1:1' is already an endpoint of 'a' ({path}:3)",
        f"{eps}:2:28: [1].wait: unknown field (did you mean 'weight'?)",
        f"{eps}:3:3: [2]: '10.0.0.1:9' is not on this machine: identity.source dev is for 127.0.0.1 only; "
        "use such an address, or mtls: disabled",
        f"{eps}:4:3: [3]: is empty; give it a value or remove the line",
        f"{path}:4:1: zone: unknown field",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [("a: 1", "1:1: must be a list, not a mapping"), ("", "1:1: the file is empty"), ("[", "2:1: not YAML: ")],
)
def test_no_list_in_an_endpoint_file(tmp_path: Path, text: str, problem: str) -> None:
    """A file that is not a list of entries is refused."""
    (line,) = refused(with_endpoints(tmp_path, text + "\n"))
    assert line.startswith(f"{tmp_path}/eps.yaml:{problem}")


def test_an_endpoint_file_that_is_not_there(tmp_path: Path) -> None:
    """Reported where it is named, once per place, with the reason."""
    path = with_endpoints(tmp_path, "[]")
    (tmp_path / "eps.yaml").unlink()
    assert refused(path) == [
        f"{path}:3:62: services.a.endpoints[1].file: 'eps.yaml' cannot be read: No such file or directory"
    ]


def test_version_number() -> None:
    """48 bits of the content: any edit of a value changes it, layout and comments do not."""
    number = parse_config(FULL).version_number
    assert 0 < number < 2**48
    assert parse_config("# hello\n" + FULL.replace("timeout: 2s", "timeout:    2s"), "x.yaml").version_number == number
    seen = {number}
    for before, after in [
        ("timeout: 2s", "timeout: 3s"),
        ("8081", "8089"),
        ("name: main", "name: mine"),
        ("prefix: p", "prefix: q"),
    ]:
        seen.add(parse_config(FULL.replace(before, after)).version_number)
    assert len(seen) == 5


def test_a_dict() -> None:
    """A dict is the same configuration as its text; its mistakes have no line."""
    data = read(FULL, "f").data
    config = config_of(data)
    assert config.version_number == parse_config(FULL).version_number
    assert config.place(("defaults", "timeout")) == "<dict>"
    assert config_of(config) is config
    assert refused({"version": 1, "mesh": "m", "defaults": {"timeout": 3}, "servces": None}) == [
        "<dict>:0:0: defaults.timeout: 3 is not a duration: write up to four whole numbers, each with h, m, s or ms, "
        "such as 250ms",
        "<dict>:0:0: servces: unknown field (did you mean 'services'?)",
        "<dict>:0:0: servces: is empty; give it a value or remove the line",
    ]


@pytest.mark.parametrize("value", [{"a": object()}, {"a": float("nan")}, 5, None, [1], {"a": {1, 2}}])
def test_what_is_no_configuration(value: object) -> None:
    """Whatever is given, ConfigError is what comes."""
    assert refused(value)[0].startswith("<dict>:")


def test_a_dict_without_end() -> None:
    """A dict that contains itself, and one that is too deep, are refused before anything is walked."""
    cycle: dict[str, object] = {}
    cycle["a"] = cycle
    assert refused(cycle)[0].startswith("<dict>: a configuration is a path, a MeshConfig, or a dict of plain data")
    deep: dict[str, object] = {}
    for _ in range(200):
        deep = {"a": deep}
    assert refused(deep) == ["<dict>:0:0: nested deeper than 64 levels"]


def test_overrides(tmp_path: Path) -> None:
    """They are laid over a file, a dict or a MeshConfig before the check; mappings field by field."""
    (tmp_path / "mesh.yaml").write_text(HEAD + "defaults: {timeout: 2s, mtls: strict}\n")
    over = {"state_dir": "/x", "defaults": {"timeout": "3s"}}
    for value in (tmp_path / "mesh.yaml", config_of(tmp_path / "mesh.yaml")):
        config = config_of(value, over)
        assert (config.state_dir, config.defaults.timeout, config.defaults.mtls) == ("/x", 3.0, "strict")
        assert config.directory == tmp_path
        assert config.place(("defaults", "timeout")) == "<overrides>"
        assert config.place(("defaults", "mtls")) == f"{tmp_path}/mesh.yaml:3"
    assert config_of(tmp_path / "mesh.yaml", {}).state_dir == ".meshlib"
    assert refused(tmp_path / "mesh.yaml", {"state_dri": "/x"}) == [
        "<overrides>:0:0: state_dri: unknown field (did you mean 'state_dir'?)"
    ]


def test_problems_at_the_bound() -> None:
    """MAX_PROBLEMS are listed, the rest is counted, and many cost little."""
    text = HEAD + "".join(f"word{i}: 1\n" for i in range(MAX_PROBLEMS))
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert len(caught.value.problems) == MAX_PROBLEMS
    with pytest.raises(ConfigError) as caught:
        parse_config(text + "one: 1\ntwo: 1\n")
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert str(caught.value.problems[-1]) == f"<text>:{MAX_PROBLEMS + 3}:1: and 2 more"


def test_import_is_light() -> None:
    """Importing the configuration loads neither the YAML parser nor anything of the network."""
    heavy = "{'yaml', 'httpx', 'ssl', 'cryptography'}"
    code = f"import sys, meshlib.config; print(sorted({heavy} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"


def test_made_by_hand() -> None:
    """A MeshConfig that no loader made has no endpoints and no lines, and says so instead of failing."""
    config = MeshConfig.model_validate({"version": 1, "mesh": "m", "services": {"a": {}}})
    assert (config.endpoints("a.default"), config.place(("mesh",)), config.files) == ((), "<dict>", ())
