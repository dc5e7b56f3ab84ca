"""The lock files of requirements/ and the table of licences agree with setup.cfg and with the installed packages."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.child import REPOSITORY, run_child

FOLDER = REPOSITORY / "requirements"
sys.path.insert(0, str(FOLDER))  # its scripts are no package
import licences  # noqa: E402
import lock  # noqa: E402

NAMES = [entry.name for entry in lock.LOCKS]
EXTRAS = [extra for entry in lock.LOCKS for extra in entry.extras]
# Not locked: the package itself, what edgellama.lite packs, and what a virtual environment brings.
OURS = {"edgellama", "mindspore-lite", "pip"}
HERE = (f"{sys.version_info.major}.{sys.version_info.minor}", os.uname().machine)


def locked(name: str) -> list[lock.Package]:
    """Returns the packages of a lock file and of those that it includes."""
    (entry,) = (entry for entry in lock.LOCKS if entry.name == name)
    own = lock.read_lock(entry.path.read_text(encoding="utf-8"))
    return own + [package for include in entry.includes for package in locked(include)]


def with_torch(name: str) -> list[lock.Package]:
    """Returns the packages of a lock file, and torch, which is not locked but has a pin."""
    pin, _, version = lock.torch_pin().partition("==")
    return [*locked(name), lock.Package(pin, version, lock.EVERYWHERE)]


def version_in(packages: list[lock.Package], name: str, environment: tuple[str, str]) -> str | None:
    """Returns the version of a package that an environment gets from these packages; None for none."""
    found = {package.version for package in packages if package.name == name and environment in package.environments}
    assert len(found) < 2, f"{name} has {found} in {environment}"
    return found.pop() if found else None


@pytest.mark.parametrize("text", [f"{name}.txt" for name in NAMES])
def test_a_lock_file_has_pins_and_hashes_and_no_address(text: str) -> None:
    lines = (FOLDER / text).read_text(encoding="utf-8").splitlines()
    pin = r"[a-z0-9-]+==[0-9][0-9a-z.+]*( ; [a-z_]+ [<>=]+ '[\w.]+'( (and|or) [a-z_]+ [<>=]+ '[\w.]+')*)? \\"
    kinds = [r"#.*", r"-r \w+\.txt", pin, r"    --hash=sha256:[0-9a-f]{64}( \\)?"]
    assert [line for line in lines if not any(re.fullmatch(kind, line) for kind in kinds)] == []
    assert not re.search(r"https?:|://|index", "\n".join(lines))
    assert all(package.hashes for package in lock.read_lock("\n".join(lines)))


@pytest.mark.parametrize("environment", lock.ENVIRONMENTS, ids=" ".join)
def test_the_lock_satisfies_every_requirement_of_setup_cfg(environment: tuple[str, str]) -> None:
    for entry in lock.LOCKS:
        packages = with_torch(entry.name)
        for line in itertools.chain.from_iterable(map(lock.requirements_of, entry.extras)):
            requirement = Requirement(line)
            if environment in lock.environments_of(requirement.marker):
                version = version_in(packages, canonicalize_name(requirement.name), environment)
                assert version and requirement.specifier.contains(version), f"{line}: {version}; run `make lock`"


def test_every_extra_of_setup_cfg_is_in_a_lock_file() -> None:
    text = (REPOSITORY / "setup.cfg").read_text(encoding="utf-8").partition("[options.extras_require]")[2]
    declared = set(re.findall(r"^([a-z]+) =", text.partition("\n[")[0], re.MULTILINE))
    included = {"runtime", "grammar"}  # empty, and part of serve
    assert declared - included == set(EXTRAS) - {"", "build"}


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("lock", "wheel")]
)  # have environments of their own
def test_a_lock_file_has_everything_that_its_packages_need(name: str) -> None:
    """Follows the metadata of the installed packages, from the requirements in setup.cfg."""
    packages = with_torch(name)
    (entry,) = (entry for entry in lock.LOCKS if entry.name == name)
    waiting = [Requirement(line) for extra in entry.extras for line in lock.requirements_of(extra)]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))
        if key in seen or key[0] == "pip" or (requirement.marker and not requirement.marker.evaluate()):
            continue
        seen.add(key)
        version = version_in(packages, key[0], HERE)
        assert version and requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version}"
        for line in metadata.requires(key[0]) or ():
            needed = Requirement(line)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *key[1])):
                needed.marker = None
                waiting.append(needed)


def test_the_installed_packages_are_the_locked_ones() -> None:
    packages = with_torch("test")
    different = {}
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        version = version_in(packages, name, HERE)
        if name not in OURS and distribution.version.partition("+")[0] != version:
            different[name] = (distribution.version, version)
    assert different == {}, "installed, and locked; update the environment with `make .venv/ready-test`"


def test_uv_resolves_for_the_environments_of_the_lock() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^environments = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert listed
    admitted = [lock.environments_of(Marker(line)) for line in re.findall(r'"(.+)"', listed[1])]
    assert frozenset().union(*admitted) == lock.EVERYWHERE
    config = (REPOSITORY / "setup.cfg").read_text(encoding="utf-8")
    (lowest, above) = re.findall(r"3\.\d+", re.search(r"python_requires = (.*)", config)[1])
    assert (lock.PYTHONS[0], f"3.{int(lock.PYTHONS[-1][2:]) + 1}") == (lowest, above)


def test_what_the_cpu_build_of_torch_needs_is_locked() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    name, version, needed = re.search(
        r'name = "(.+)"\nversion = "(.+)"\nrequires-dist = (\[.*?\])', text, re.DOTALL
    ).groups()
    assert lock.torch_pin() == f"{name}=={version}"
    if metadata.version("torch").endswith("+cpu"):
        unconditional = {line for line in metadata.requires("torch") if ";" not in line}
        assert set(json.loads(needed.replace(",\n]", "]"))) == unconditional


@pytest.mark.parametrize("first", range(3))
@pytest.mark.parametrize("count", range(1, 4))
def test_a_marker_admits_the_environments_it_was_made_for(first: int, count: int) -> None:
    pythons = lock.PYTHONS[first : first + count]
    for machines in (("x86_64",), ("aarch64",), lock.MACHINES):
        environments = lock.Environments(itertools.product(pythons, machines))
        text = lock.marker_of(environments)
        assert lock.environments_of(Marker(text) if text else None) == environments
    mixed = lock.Environments({("3.11", "x86_64"), ("3.11", "aarch64"), ("3.12", "aarch64")})
    assert lock.environments_of(Marker(lock.marker_of(mixed))) == mixed


def test_make_installs_locked_packages_only() -> None:
    """Every installation has hashes, or no index; the exception is torch, by its pin."""
    goals = [".venv/ready-test", "check-install", "build/lock/ready", "build/wheels/env/ready"]
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", *goals], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    commands = [
        line for line in done.stdout.replace("\\\n", " ").splitlines() if re.search(r"bin/pip\b.* install\b", line)
    ]
    assert len(commands) >= 6
    free = [line for line in commands if not re.search(r"--require-hashes|--no-index", line)]
    assert [line.split(" install ")[1] for line in free] == [
        "--only-binary :all: \"$(grep -Eo 'torch==[0-9.]+' setup.cfg)\""
    ]


def rows() -> dict[str, list[str]]:
    """Returns the licence table: package -> its other columns."""
    lines = licences.PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: rest for name, *rest in cells[2:]}


def test_the_table_of_licences_is_that_of_the_locked_packages() -> None:
    table, used = rows(), licences.used_by()
    assert set(table) == set(used)
    for name, (licence, *marks) in table.items():
        assert licence not in ("", "not stated"), name
        assert {column for column, mark in zip(licences.COLUMNS, marks, strict=True) if mark} == used[name]
        try:
            information = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue  # for another Python or machine
        assert licence == licences.licence_of(information), name


def test_what_users_install_has_a_permissive_licence() -> None:
    """The runtime and the endpoint are embedded in other people's apps."""
    strong = re.compile(r"\bA?GPL|SSPL|proprietary|commercial", re.IGNORECASE)
    used = licences.used_by()
    found = {
        name: row[0] for name, row in rows().items() if used[name] & {"runtime", "serve"} and strong.search(row[0])
    }
    assert found == {}


class Database(BaseHTTPRequestHandler):
    """Answers as an OSV server does: the packages of `vulnerable` have one vulnerability each."""

    vulnerable: frozenset[str] = frozenset()

    def do_POST(self) -> None:
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
        event = {"events": [{"introduced": "0"}, {"fixed": "99.0"}], "type": "ECOSYSTEM"}
        affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [event]}]
        known = {"id": "CVE-2026-0001", "summary": "test", "details": "test", "affected": affected}
        body = json.dumps({"vulns": [known]} if name in self.vulnerable else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def database() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Database)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


def audit(status: int, *options: str, **environment: str) -> str:
    script = str(FOLDER / "audit.py")
    return run_child(script, *options, status=status, env=os.environ | environment).stdout


@pytest.mark.parametrize(
    "vulnerable", [{"jinja2"}, {"jinja2", "idna"}, set()], ids=lambda names: "-".join(sorted(names))
)
def test_audit_reports_what_the_database_knows(
    database: str, vulnerable: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is a version of jinja2, so that here a finding of jinja2 is one of the lock, too."""
    monkeypatch.setattr(Database, "vulnerable", frozenset(vulnerable))
    text = audit(1 if vulnerable else 0, "--vulnerability-service", "osv", "--osv-url", database)
    if not vulnerable:
        assert text.startswith("not checked: no vulnerability database is reachable (jinja2==2.10, which is vulnerable")
        return
    packages = [*with_torch("test"), *locked("lock"), *locked("wheel")]
    count = len({package.name for package in packages if HERE in package.environments})
    assert f"checked: {count} locked packages; known vulnerabilities: {len(vulnerable)}" in text
    for name in vulnerable:
        assert re.search(rf"^{name} [\d.]+: CVE-2026-0001; fixed in 99.0$", text, re.MULTILINE), text


def test_audit_without_a_network_says_that_nothing_was_checked(tmp_path: Path) -> None:
    proxies = {name: "http://127.0.0.1:9" for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")}
    text = audit(0, "--cache-dir", str(tmp_path), **proxies)
    assert text.startswith("not checked: no vulnerability database is reachable (")
    assert len(text.splitlines()) == 1
