"""Modules of archives: names that two archives share, every form of import, and nothing that stays behind."""

import gc
import importlib
import importlib.metadata
import inspect
import pickle
import sys
import threading
import traceback
import typing
import weakref
from pathlib import Path
from textwrap import dedent

import pytest

from servekit.imports import Modules, current


def archive(folder: Path, **files: str) -> Path:
    """Write the modules of an archive; `pkg__mod` is `pkg/mod.py`."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return folder


def package(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    return archive(folder, **files)


def test_two_archives_have_modules_of_the_same_name(tmp_path: Path) -> None:
    folders = [archive(tmp_path / name, model=f"NAME = '{name}'", handler="import model\nfrom model import NAME") for name in "ab"]
    modules = [Modules([folder]) for folder in folders]
    handlers = [module.load("handler") for module in modules]
    assert [handler.NAME for handler in handlers] == ["a", "b"]
    assert [handler.model.NAME for handler in handlers] == ["a", "b"]
    assert not {"model", "handler"} & set(sys.modules)
    assert not list(tmp_path.rglob("__pycache__"))


def test_every_form_of_import(tmp_path: Path) -> None:
    package(tmp_path / "a", b="from . import c\nfrom .c import C\nimport a.c\nB = 'b'", c="C = 'c'", d="D = 'd'")
    archive(
        tmp_path,
        handler="""
            import a.b
            import a.b as ab
            import json, os.path, importlib.util, importlib.metadata
            from a import d
            from a.b import *
            from a.c import C as c
            answer = a.b.B + ab.B + d.D + B + c + ab.a.c.C + json.dumps(os.path.sep)
            importlib.util.find_spec, importlib.metadata.version
            same = __import__("a.b").b is __import__("a.b", fromlist=["B"]) is __import__("a.b", None, None, [], 0).b is ab
            """,
    )
    handler = Modules([tmp_path]).load("handler")
    assert handler.answer == 'bbdbcc"/"' and handler.same


def test_what_the_archive_does_not_have_is_imported_as_ever(tmp_path: Path) -> None:
    text = "import json as other, ts, torch\nimport servekit.errors"
    archive(tmp_path, handler="import json\nimport servekit.errors", json=text, servekit="", torch="")
    handler = Modules([tmp_path]).load("handler")
    assert handler.json is sys.modules["json"]
    assert handler.servekit is sys.modules["servekit"]


def test_a_folder_of_data_hides_no_installed_package(tmp_path: Path) -> None:
    for name in ("yaml", "data_only"):
        (tmp_path / name).mkdir()
    handler = Modules([archive(tmp_path, handler="import yaml\nimport data_only")]).load("handler")
    assert handler.yaml.safe_load("1") == 1
    assert list(handler.data_only.__path__) == [str(tmp_path / "data_only")]


def install(folder: Path, name: str, version: str, **files: str) -> None:
    """Write a package as pip does, with a list of its files."""
    package(folder / name, **files)
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    written = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    (about / "RECORD").write_text("".join(f"{path},,\n" for path in written))


def test_required_packages_have_their_own_names_and_come_after_the_archives_modules(tmp_path: Path) -> None:
    text = "import shared\nimport _required_x.sub as x\nfound = shared.FROM, x.FROM, x.__name__"
    archive(tmp_path / "model", handler=text, shared="FROM = 'model'")
    archive(tmp_path / "more", shared="FROM = 'more'", _required_y="FROM = 'more'")
    package(tmp_path / "more" / "_required_x", sub="from _required_y import FROM")
    both = [Modules([tmp_path / "model", tmp_path / "more"]) for _ in range(2)]
    assert both[0].load("handler").found == ("model", "more", "_required_x.sub")
    assert sys.path[-1] == str(tmp_path / "more")
    both[0].forget()
    assert both[1].load("handler").found == ("model", "more", "_required_x.sub")
    both[1].forget()
    assert str(tmp_path / "more") not in sys.path
    for name in ("_required_x.sub", "_required_x", "_required_y"):
        del sys.modules[name]


def test_other_versions_of_what_the_server_has_live_beside_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive(tmp_path / "model", handler="import yaml, click, numpy, iniconfig")
    install(tmp_path / "more", "click", "0.0.1", sub="import click", other="from click import sub")
    install(tmp_path / "more", "numpy", "0.0.1")
    install(tmp_path / "more", "iniconfig", importlib.metadata.version("iniconfig"))
    modules = Modules([tmp_path / "model", tmp_path / "more"])
    handler = modules.load("handler")
    assert handler.click.__file__ == str(tmp_path / "more" / "click" / "__init__.py")
    assert importlib.import_module("click").__file__ != handler.click.__file__
    assert modules.load("click.other").sub.click is handler.click
    for name in ("numpy", "iniconfig", "yaml"):
        assert getattr(handler, name) is importlib.import_module(name)
    (record,) = caplog.records
    assert "An archive requires numpy 0.0.1; the server's own" in record.getMessage()
    modules.forget()


def test_imports_in_functions_work_later_and_in_any_thread(tmp_path: Path) -> None:
    text = "def late():\n    import model\n    from pkg.deep import X\n    return model.NAME + X"
    handlers = []
    for name in "ab":
        archive(tmp_path / name, handler=text, model=f"NAME = '{name}'", pkg__deep=f"X = '{name}'")
        handlers.append(Modules([tmp_path / name]).load("handler"))
    answers: list[list[str]] = [[], []]
    calls = [lambda i=i: answers[i].append(handlers[i].late()) for i in (0, 1) for _ in range(20)]
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [["aa"] * 20, ["bb"] * 20]


@pytest.mark.parametrize("line", ["import importlib", "from importlib import import_module", "import importlib.util"])
def test_import_module_finds_the_archives_own(tmp_path: Path, line: str) -> None:
    call = "import_module" if line.startswith("from") else "importlib.import_module"
    archive(tmp_path, handler=f"{line}\ndef go(name):\n    return {call}(name)", model="NAME = 1", pkg__sub="NAME = 2")
    go = Modules([tmp_path]).load("handler").go
    assert (go("model").NAME, go("pkg.sub").NAME) == (1, 2)
    assert go("json") is sys.modules["json"]
    assert "model" not in sys.modules and "pkg" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="^No module named 'pkg.nothing'$"):
        go("pkg.nothing")


def test_others_find_plain_names_within_the_scope_only(tmp_path: Path) -> None:
    both = [Modules([archive(tmp_path / name, net=f"class Net:\n    name = '{name}'")]) for name in "ab"]
    archive(tmp_path / "a", pkg__sub="HERE = True")
    data = b"\x80\x04cnet\nNet\n."
    for modules, name in zip(both, "ab", strict=True):
        with modules.scope():
            assert current() is modules
            assert pickle.loads(data).name == name
            found = importlib.import_module("net")
            assert found.__name__ == found.Net.__module__ and "Net" in dir(found)
            assert [cls for _, cls in inspect.getmembers(found, inspect.isclass)] == [modules.load("net").Net]
    with both[0].scope():
        assert importlib.import_module("pkg.sub").HERE
    assert current() is None and not {"net", "pkg", "pkg.sub"} & set(sys.modules)
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(data)


def test_pickles_that_the_archive_itself_reads_find_its_classes(tmp_path: Path) -> None:
    text = "import pickle\ndef go():\n    return pickle.loads(b'\\x80\\x04cnet\\nNet\\n.')"
    modules = Modules([archive(tmp_path, handler=text, net="class Net:\n    pass")])
    handler, net = modules.load("handler"), modules.load("net")
    with modules.scope():
        assert handler.go() is net.Net
    found: list[type] = []
    thread = threading.Thread(target=lambda: found.append(handler.go()))
    thread.start()
    thread.join()
    assert found == [net.Net] and current() is None
    with modules.scope():
        pass
    assert "net" not in sys.modules


def test_scopes_of_two_archives_at_once_see_each_its_own(tmp_path: Path) -> None:
    both = [Modules([archive(tmp_path / name, net=f"class Net:\n    name = '{name}'")]) for name in "ab"]
    wrong: list[str] = []

    def look(modules: Modules, name: str) -> None:
        for _ in range(200):
            with modules.scope():
                if (found := pickle.loads(b"\x80\x04cnet\nNet\n.").name) != name:
                    wrong.append(found)

    threads = [threading.Thread(target=look, args=(both[i % 2], "ab"[i % 2])) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and "net" not in sys.modules


def test_what_an_archive_lacks_is_not_found_while_another_has_it(tmp_path: Path) -> None:
    rich, poor = Modules([archive(tmp_path / "a", net="")]), Modules([archive(tmp_path / "b", other="")])
    with rich.scope():
        importlib.import_module("net")
        with poor.scope(), pytest.raises(ModuleNotFoundError, match="No module named 'net'"):
            importlib.import_module("net")


def test_what_looks_up_modules_by_name_finds_them(tmp_path: Path) -> None:
    archive(
        tmp_path,
        handler="""
            from __future__ import annotations
            import dataclasses

            @dataclasses.dataclass
            class Row:
                value: int
                rest: list[Row] = dataclasses.field(default_factory=list)

            def fail():
                raise KeyError("no")

            if __name__ == "__main__":
                raise SystemExit("not a script")
            """,
    )
    handler = Modules([tmp_path]).load("handler")
    assert typing.get_type_hints(handler.Row)["rest"] == list[handler.Row]
    assert handler.Row(3) == pickle.loads(pickle.dumps(handler.Row(3)))
    assert inspect.getsource(handler.fail).startswith("def fail")
    assert inspect.getsource(handler.Row).startswith("@dataclasses")
    try:
        handler.fail()
    except KeyError as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        assert (frame.filename, frame.line) == (str(tmp_path / "handler.py"), 'raise KeyError("no")')


def test_a_module_that_is_missing_is_named_as_the_archive_names_it(tmp_path: Path) -> None:
    archive(tmp_path, handler="import pkg.nothing", other="import no_such_thing", pkg__x="", code="HERE = True")
    modules = Modules([tmp_path])
    for name, missing in (("handler", "pkg.nothing"), ("other", "no_such_thing"), ("absent", "absent")):
        with pytest.raises(ModuleNotFoundError, match=f"^No module named '{missing}'$") as caught:
            modules.load(name)
        assert caught.value.name == missing
    assert modules.load("code").HERE  # asked for by name, a module of the standard library's name is the archive's
    assert modules.has("code") and not modules.has("pkg") and not modules.has("absent")


def test_what_is_forgotten_is_freed(tmp_path: Path) -> None:
    modules = Modules([archive(tmp_path, handler="import model\nclass Handler:\n    pass", model="DATA = []")])
    with modules.scope():
        importlib.import_module("model")
    handler = weakref.ref(modules.load("handler").Handler)
    name = modules.name
    assert handler() is not None
    modules.forget()
    del modules
    gc.collect()
    assert handler() is None
    assert not [module for module in sys.modules if module.startswith(name)]


def test_modules_without_their_source_run_too(tmp_path: Path) -> None:
    import py_compile

    archive(tmp_path, handler="import model\nNAME = model.NAME", model="NAME = 'x'")
    py_compile.compile(str(tmp_path / "handler.py"), str(tmp_path / "handler.pyc"))
    (tmp_path / "handler.py").unlink()
    assert Modules([tmp_path]).load("handler").NAME == "x"
