"""The versions that are named: what `make test-minimal` installs is what setup.cfg allows at least."""

import configparser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
TOOLS = {"test", "check"}  # extras that no user of the server installs


def pins(name: str) -> dict[str, Version]:
    """Return the versions that a file of constraints pins."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in (line.split("==") for line in lines)}


def floors(is_tool: bool) -> dict[str, Version]:
    """Return the least version of each package of setup.cfg; every one has to have one."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = [text for extra, text in setup["options.extras_require"].items() if (extra in TOOLS) is is_tool]
    lines = "\n".join([*texts, "" if is_tool else setup["options"]["install_requires"]]).splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found: dict[str, Version] = {}
    for each in wanted:
        (bound,) = each.specifier
        assert bound.operator == ">=", each
        assert found.setdefault(canonicalize_name(each.name), Version(bound.version)) == Version(bound.version), each
    return found


def test_the_oldest_versions_are_the_floors_and_all_else_is_as_in_the_other_tests() -> None:
    oldest, usual, allowed = pins("constraints-minimal.txt"), pins("constraints.txt"), floors(is_tool=False)
    assert {name: oldest[name] for name in allowed} == allowed
    assert {name: version for name, version in oldest.items() if name not in allowed} == {
        name: version for name, version in usual.items() if name not in allowed
    }


def test_the_usual_versions_are_allowed_ones() -> None:
    usual = pins("constraints.txt")
    for name, least in {**floors(is_tool=False), **floors(is_tool=True)}.items():
        assert usual[name] >= least, name


def test_no_version_with_a_known_hole_is_allowed() -> None:
    """Each least version and its reason: clouds' and packages' advisories that touch what a client can send."""
    allowed = floors(is_tool=False)
    for name, least in {
        "flask": "3.1.3",  # sessions in shared caches
        "gunicorn": "22.0.0",  # CVE-2024-1135, CVE-2024-6827: requests smuggled
        "jinja2": "3.1.6",  # CVE-2025-27516
        "orjson": "3.11.6",  # CVE-2024-27454, CVE-2025-67221: deep nesting
        "pillow": "13.0.0",  # CVE-2026-112403, CVE-2026-112398: overflows in the JPEG decoder
        "protobuf": "6.33.5",  # CVE-2025-4565, CVE-2026-0994: deep nesting
        "pyyaml": "5.4",  # CVE-2020-14343
        "torch": "2.10",  # CVE-2025-32434, CVE-2026-24747: weights_only
        "werkzeug": "3.1.6",  # CVE-2023-25577, CVE-2023-46136, CVE-2024-49767: multipart
    }.items():
        assert allowed[name] >= Version(least), name
