"""The shape of the code: imports only go down, functions fit a screen, what is public is explained."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"errors", "config", "platforms", "logs", "memory", "descriptors", "cgroup", "ports", "record", "trace", "keys", "tally"},
    {"tensors", "metrics", "exchange", "rates"},
    {"codecs", "spec", "signature", "desired", "bells", "state", "stores", "archive", "unpacking", "imports", "ts", "triton"},
    {"engines", "handlers", "batcher"},
    {"line", "model", "loading", "ensemble"},
    {"repository"},
    {"payload", "ext", "lean", "access", "entrance", "middleware", "shedding", "tracing", "hooks", "crew", "reloads", "follow"}
    | {"torchserve", "openapi", "serving"}
    | {"board", "clients", "connection", "gateway", "guardian", "http1", "intake", "refusals", "roster"}
    | {"turns", "watchdog", "worker"},
    {"blueprints"},
    {"apis", "app", "server"},
    {"archiver", "cli", "grpc", "__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WEB = {"flask", "werkzeug", "gunicorn", "wsgiref"}
PROMETHEUS = {"prometheus_client", "prometheus_flask_exporter"}

MODULES = sorted((ROOT / "servekit").rglob("*.py"))
SOURCES = [*MODULES, *(path for folder in ("models", "train", "bench") for path in sorted((ROOT / folder).rglob("*.py")))]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    """Return the full names of the modules and names that `path` imports, nested imports too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(path: Path) -> set[str]:
    names = {name for name in imports_of(path) if name.startswith("servekit.")}
    return {room_of(name) for name in names if room_of(name) in FLOOR_OF}


@pytest.mark.parametrize("path", MODULES[1:], ids=name_of)
def test_imports_only_go_down(path: Path) -> None:
    room = room_of(name_of(path))
    for other in rooms_imported(path) - {room}:
        assert FLOOR_OF[other] <= FLOOR_OF[room], f"{room} imports {other}"


def test_every_module_has_a_floor() -> None:
    assert {room_of(name_of(path)) for path in MODULES} - {"__init__"} == set(FLOOR_OF)


def test_rooms_of_one_floor_form_no_circle() -> None:
    graph = {room: set() for room in FLOOR_OF}
    for path in MODULES[1:]:
        room = room_of(name_of(path))
        graph[room] |= rooms_imported(path) - {room}
    while free := [room for room, others in graph.items() if not others]:
        graph = {room: others - set(free) for room, others in graph.items() if room not in free}
    assert not graph


def test_siblings_do_not_know_one_another() -> None:
    for folder, shared in (("blueprints", set()), ("engines", set()), ("handlers", {"base"})):
        for path in (ROOT / "servekit" / folder).glob("*.py"):
            inside = {name.split(".")[2] for name in imports_of(path) if name.startswith(f"servekit.{folder}.")}
            assert inside <= shared, path


def test_engines_and_handlers_and_batcher_do_not_know_one_another() -> None:
    for path in MODULES[1:]:
        room = room_of(name_of(path))
        if FLOOR_OF[room] == 3:
            assert not rooms_imported(path) & (FLOORS[3] - {room}), path


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_upper_floors_know_the_web(path: Path) -> None:
    room = room_of(name_of(path) + ".")
    tops = {name.split(".")[0] for name in imports_of(path)}
    if FLOOR_OF.get(room, 0) < 6 and room != "metrics":  # its annotation of init_app names Flask
        assert not tops & WEB
    if room != "metrics":
        assert not tops & PROMETHEUS


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_server_imports_neither_training_nor_networks(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports_of(path)} & {"train", "models", "tests"}


@pytest.mark.parametrize("path", sorted((ROOT / "train").glob("*.py")), ids=name_of)
def test_training_uses_the_lower_floors_only(path: Path) -> None:
    assert all(FLOOR_OF[room] <= 3 for room in rooms_imported(path))


@pytest.mark.parametrize("room", sorted(FLOORS[0]))
def test_the_ground_floor_needs_the_standard_library_only(room: str) -> None:
    import sys

    paths = [path for path in MODULES[1:] if room_of(name_of(path)) == room]
    tops = {name.split(".")[0] for path in paths for name in imports_of(path)}
    assert paths and tops <= set(sys.stdlib_module_names) | {"servekit"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_and_functions_fit(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
    assert "TODO" not in text and "FIXME" not in text


def public(scope: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Give the classes and functions that `scope` offers, and the methods of its public classes."""
    for node in scope.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_what_is_public_is_explained(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), path
    for node in public(tree):
        assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_nine_functions_in_ten_are_short() -> None:
    functions = [
        node.end_lineno - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    assert sorted(functions)[int(len(functions) * 0.9)] <= 25
