"""What is installed beside this program: versions, what a distribution requires, and how to add to it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

PACKAGE: Final = "qatconvert"
#: The extra of those who work on this program, whom ``make`` serves.
_DEVELOPMENT: Final = "dev"


@dataclass(frozen=True, slots=True)
class Library:
    """A distribution that this program requires, always or for an extra."""

    name: str
    #: The extras that bring it, none if it always comes along.
    extras: tuple[str, ...]
    #: The versions that are allowed (``>=1.23``).
    required: str
    #: What is installed, ``None`` if it is not.
    version: str | None
    #: What the tests ran with, ``None`` where they had no fixed version.
    tested: str | None

    @property
    def state(self) -> str:
        """``missing``, ``outside`` (of the allowed versions), ``untested`` (allowed, but another version than
        the tests ran with) or ``tested``."""
        if self.version is None:
            return "missing"
        if not _allows(self.required, self.version):
            return "outside"
        build = self.version.partition("+")[0]  # ``2.13.0+cpu`` is one of 2.13.0
        return "tested" if build == self.tested else "untested"


def libraries(package: str = PACKAGE) -> list[Library]:
    """What ``package`` and its extras require on this platform, by name; nothing is imported."""
    found: dict[str, tuple[list[str], SpecifierSet]] = {}
    for extra in ("", *_extras(package)):
        for one in _requirements(package, extra):
            extras, specifier = found.get(canonicalize_name(one.name), ([], SpecifierSet()))
            found[canonicalize_name(one.name)] = ([*extras, extra], specifier & one.specifier)
    return [
        Library(
            name,
            () if "" in extras else tuple(extras),
            ",".join(sorted({str(one) for one in specifier}, reverse=True)),
            installed_version(name),
            tested_versions().get(name),
        )
        for name, (extras, specifier) in sorted(found.items())
    ]


@cache
def tested_versions() -> Mapping[str, str]:
    """The versions that the tests ran with, by canonical name."""
    lines = files("converter").joinpath("constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): found for name, found in pairs}


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, ``None`` if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def installer() -> str:
    """What manages this environment: ``pipx``, ``uv tool``, ``pip``, or ``uv`` where pip is not in it."""
    prefix = Path(sys.prefix)
    if (prefix / "pipx_metadata.json").is_file():
        return "pipx"
    if (prefix / "uv-receipt.toml").is_file():
        return "uv tool"
    return "pip" if find_spec("pip") is not None else "uv"


def install_command(extras: Sequence[str], package: str = PACKAGE) -> str:
    """A shell command that adds ``extras`` of ``package`` to this environment, from where it came from."""
    wanted = [extra for extra in dict.fromkeys(extras) if extra]
    if installer() in ("pipx", "uv tool") or (origin := _origin(package, wanted)) is None:
        # added beside it, as its own origin may be gone or its other extras be lost
        origin = [str(one) for one in _plain(package, wanted)]
    return shlex.join([*_installing(), *origin])


def reinstall_command(module: str) -> str:
    """A shell command that installs the distribution of ``module`` anew, in the version the tests ran with if
    there is one; empty where no distribution is known to bring it."""
    names = packages_distributions().get(module.partition(".")[0], [])
    wanted = []
    for name in dict.fromkeys(names):
        found = tested_versions().get(canonicalize_name(name)) or installed_version(name)
        wanted.append(f"{name}=={found}" if found else name)
    if not wanted:
        return ""
    again = ["--pip-args=--force-reinstall --no-deps"] if installer() == "pipx" else []
    plain = [] if again else (["--reinstall"] if _installing()[0] == "uv" else ["--force-reinstall"])
    no_others = [] if again else ["--no-deps"]
    return shlex.join([*_installing(), *again, *plain, *no_others, *wanted])


def _installing() -> list[str]:
    if installer() == "pipx":
        return ["pipx", "inject", PACKAGE]
    if installer() == "pip":
        return [sys.executable, "-m", "pip", "install"]
    return ["uv", "pip", "install", "--python", sys.executable]


def _origin(package: str, extras: Sequence[str]) -> list[str] | None:
    """What names ``package`` with ``extras`` to pip, ``None`` for a file that is gone."""
    brackets = f"[{','.join(extras)}]" if extras else ""
    try:
        recorded = distribution(package).read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    if recorded is None:  # it came from an index
        return [f"{package}{brackets}"]
    told = json.loads(recorded)
    address = str(told["url"])
    if address.startswith("file:") and "vcs_info" not in told:
        path = Path(unquote(urlsplit(address).path))
        if not path.exists():
            return None
        editable = told.get("dir_info", {}).get("editable", False)
        return [*(["--editable"] if editable else []), f"{path}{brackets}"]
    if "vcs_info" in told:
        address = f"{told['vcs_info']['vcs']}+{address}@{told['vcs_info']['commit_id']}"
    return [f"{package}{brackets} @ {address}"]


def _plain(package: str, extras: Iterable[str]) -> list[Requirement]:
    found: dict[str, Requirement] = {}
    for extra in extras or ("",):
        for one in _requirements(package, extra):
            one.marker = None
            found.setdefault(str(one), one)
    return list(found.values())


def _extras(package: str) -> list[str]:
    try:
        named = distribution(package).metadata.get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return []
    return [extra for extra in named if extra != _DEVELOPMENT]


def _requirements(package: str, extra: str) -> list[Requirement]:
    """What ``extra`` of ``package``, or the package itself for an empty one, requires on this platform."""
    try:
        lines = distribution(package).requires or []
    except PackageNotFoundError:
        return []
    read = [Requirement(line) for line in lines]
    applying = [one for one in read if one.marker is None or one.marker.evaluate({"extra": extra})]
    if extra:
        always = {str(one) for one in read if one.marker is None or one.marker.evaluate({"extra": ""})}
        applying = [one for one in applying if str(one) not in always]
    return [one for one in applying if canonicalize_name(one.name) != canonicalize_name(package)]


def _allows(required: str, found: str) -> bool:
    try:
        return SpecifierSet(required).contains(Version(found), prereleases=True)
    except InvalidVersion:
        return False
