"""What is registered: where archives are found, what is refused before it is looked for, which value wins."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from servekit.desired import Entry
from servekit.errors import ArchiveRefused, ModelLoadError
from servekit.torchserve.entries import Loader, startup_entries
from servekit.torchserve.properties import Properties
from servekit.torchserve.refusals import Refusal
from servekit.torchserve.registration import Registration
from servekit.torchserve.sources import Sources, is_allowed
from tests.fakes_torchserve import FakeRepository, make_archive

RELATIVE = "Relative path is not allowed in url: "
NOT_ALLOWED = "Given URL {} does not match any allowed URL(s)"


def make_store(folder: Path) -> Path:
    """Return a model store with noop.mar in it, a folder that is a model, and links that lead out of it."""
    store = folder / "store"
    store.mkdir()
    make_archive(store / "noop.mar")
    make_archive(folder / "outside.mar", "outside")
    (store / "link.mar").symlink_to(folder / "outside.mar")
    (store / "up").symlink_to(folder)
    (store / "folder" / "MAR-INF").mkdir(parents=True)
    (store / "folder" / "service.py").write_text("")
    manifest = '{"model": {"modelName": "unpacked", "handler": "service.py"}}'
    (store / "folder" / "MAR-INF" / "MANIFEST.json").write_text(manifest)
    (store / "empty").mkdir()
    return store


def loader_for(folder: Path, text: str = "", **limits: Any) -> tuple[Loader, Properties, FakeRepository]:
    store = folder / "store" if (folder / "store").exists() else make_store(folder)
    properties = Properties.parse(text, {}, {"model_store": str(store)})
    repository = FakeRepository(folder / "unpacked")
    sources = Sources(properties, **limits)
    loader = Loader(properties, repository.archive_folder, repository.drop_archive, folder / "packages", sources)
    return loader, properties, repository


def load(folder: Path, text: str = "", **parameters: Any) -> Entry:
    return loader_for(folder, text)[0].load(Registration.parse({"url": "noop.mar", **parameters}))


def refusal_of(loader: Loader, url: str, **parameters: Any) -> tuple[str, str]:
    with pytest.raises(Refusal) as caught:
        loader.load(Registration.parse({"url": url, **parameters}))
    return caught.value.kind, str(caught.value)


@contextmanager
def web_server(pages: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serve `pages`; give the address and the list of paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, headers, body = pages[self.path]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# Where models are found.


@pytest.mark.parametrize("url", ["noop.mar", "elsewhere/noop.mar", "{store}/noop.mar", "file://{store}/noop.mar", "./noop.mar"])
def test_an_archive_of_the_store_is_found_by_its_name(tmp_path: Path, url: str) -> None:
    store = make_store(tmp_path)
    entry = loader_for(tmp_path)[0].load(Registration(url.format(store=store)))
    assert entry.key == ("noop", "1.0")
    assert (Path(entry.folder) / "service.py").is_file()
    assert Path(entry.folder).is_relative_to(tmp_path / "unpacked")


def test_a_folder_of_the_store_is_served_where_it_is(tmp_path: Path) -> None:
    entry = load(tmp_path, url="folder")
    assert (entry.key, entry.folder) == (("unpacked", "1.0"), str(tmp_path / "store" / "folder"))
    loader, _, repository = loader_for(tmp_path)
    assert "names no handler" in refusal_of(loader, "empty")[1]
    assert loader.load(Registration("empty", model_name="x", handler="image_classifier")).name == "x"
    assert repository.dropped == []


@pytest.mark.parametrize("url", ["../outside.mar", "..%2foutside.mar", "..%252Foutside.mar", "http://ok/../x.mar", "a/../noop.mar"])
def test_a_way_up_is_refused(tmp_path: Path, url: str) -> None:
    assert refusal_of(loader_for(tmp_path)[0], url) == ("ModelNotFoundException", RELATIVE + url)


@pytest.mark.parametrize(
    "url",
    [
        *("/etc", "/etc/passwd", "file:///etc/passwd", "file://other.example/noop.mar", "link.mar", "up", "up/outside.mar"),
        *("nope.mar", ".", "/", "store", "noop.mar\0", "noop.mar\nx", "x" * 5000, "ftp://a/b.mar", "file:///tmp"),
        "{folder}/outside.mar",
    ],
)
def test_what_lies_outside_the_store_is_not_found(tmp_path: Path, url: str) -> None:
    loader, _, repository = loader_for(tmp_path)
    before = sorted(path.name for path in (tmp_path / "store").iterdir())
    url = url.format(folder=tmp_path)
    assert refusal_of(loader, url) == ("ModelNotFoundException", f"Model not found at: {url}")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == before
    assert not (tmp_path / "unpacked").exists() and not repository.dropped


def test_pipes_and_the_servers_own_files_are_not_found(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    os.mkfifo(store / "pipe.mar")
    (store / ".servekit" / "archives" / "1" / "model").mkdir(parents=True)
    (store / "alias").symlink_to(".servekit")
    for url in ("pipe.mar", ".servekit", ".servekit/archives/1/model", "alias/archives", f"file://{store}/pipe.mar"):
        refused = refusal_of(loader_for(tmp_path)[0], url, model_name="x", handler="image_classifier")
        assert refused == ("ModelNotFoundException", f"Model not found at: {url}")


@pytest.mark.parametrize("parameter", ["url", "handler"])
def test_half_a_character_is_refused(tmp_path: Path, parameter: str) -> None:
    refused = refusal_of(loader_for(tmp_path)[0], **{"url": "noop.mar", parameter: "a\ud800.mar"})
    assert refused == ("BadRequestException", f"Parameter {parameter} is not valid Unicode.")


def test_files_that_the_operator_names_may_lie_elsewhere(tmp_path: Path) -> None:
    make_store(tmp_path)
    url = f"file://{tmp_path}/outside.mar"
    assert load(tmp_path, f"allowed_urls=file://{tmp_path}/out.*", url=url).name == "outside"
    assert load(tmp_path, "allowed_urls=FILE://.*", url=url).name == "outside"
    (tmp_path / "other.mar").symlink_to(tmp_path / "outside.mar")
    loader = loader_for(tmp_path, f"allowed_urls=file://{tmp_path}/oth.*")[0]
    assert refusal_of(loader, f"file://{tmp_path}/other.mar")[0] == "ModelNotFoundException"


def test_without_a_store_there_is_nothing(tmp_path: Path) -> None:
    loader = Loader(Properties(), Path, lambda folder: None, tmp_path)
    assert refusal_of(loader, "noop.mar") == ("ModelNotFoundException", "Model not found at: noop.mar")


def test_what_is_no_archive_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    loader, _, repository = loader_for(tmp_path)
    (tmp_path / "store" / "text.mar").write_text("no archive")
    kind, message = refusal_of(loader, "text.mar")
    assert kind == "InvalidModelException"
    assert message.startswith("text.mar cannot be unpacked") and str(tmp_path) not in message
    assert len(repository.dropped) == 1
    make_archive(tmp_path / "store" / "yaml.mar", "yaml", config="a: !!python/object/apply:os.system [exit]")
    assert refusal_of(loader, "yaml.mar")[0] == "InvalidModelException"
    assert len(repository.dropped) == 2


def test_an_archive_without_a_manifest_is_called_after_its_file(tmp_path: Path) -> None:
    loader = loader_for(tmp_path, "default_service_handler=service.py")[0]
    make_archive(tmp_path / "store" / "my-model 1.mar", None)
    entry = loader.load(Registration("my-model 1.mar"))
    assert (entry.key, entry.options["handler"]) == (("my_model_1", "1.0"), "service.py")


def test_only_at_the_start_a_manifest_without_a_name_will_do(tmp_path: Path) -> None:
    make_store(tmp_path)
    make_archive(tmp_path / "store" / "nameless.mar", "")
    loader, properties, _ = loader_for(tmp_path, "load_models=nameless.mar")
    assert refusal_of(loader, "nameless.mar") == ("InvalidModelException", "Model name is not defined.")
    assert [entry.name for entry in startup_entries(properties, loader)] == ["nameless"]


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "-x", "x" * 200, "a\n"])
def test_a_name_that_cannot_stand_in_a_path_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal_of(loader_for(tmp_path)[0], "noop.mar", model_name=name)[0] == "BadRequestException"


# Downloads.


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://ok.com/x.mar", True),
        ("HTTP://OK.com/x.mar", True),
        ("http://ok.com.evil/x.mar", False),
        ("http://ok.com@evil/x.mar", False),
        ("http://user:word@ok.com/x.mar", False),
        ("http://evil/http://ok.com/x.mar", False),
        ("http://ok.com\\@evil/x.mar", False),
        ("http://ok.com /x.mar", False),
        ("http:///x.mar", False),
        ("http://[::1/x.mar", False),
        ("http://ok.com:99999/x.mar", False),
        ("http://okxcom/x.mar", False),
    ],
)
def test_the_whole_url_must_match(url: str, allowed: bool) -> None:
    assert is_allowed(url, (r"https?://ok\.com/.*", "file://.*")) == allowed
    assert not is_allowed(url, ())


def test_an_archive_is_downloaded_and_nothing_stays_in_the_store(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    content = make_archive(tmp_path / "far.mar", "far").read_bytes()
    with web_server({"/a/far.mar?x=1": (200, {}, content)}) as (address, asked):
        entry = loader_for(tmp_path, f"allowed_urls={address}/.*")[0].load(Registration(f"{address}/a/far.mar?x=1"))
    assert (entry.key, entry.source) == (("far", "1.0"), f"{address}/a/far.mar?x=1")
    assert asked == ["/a/far.mar?x=1"]
    assert [path.name for path in Path(entry.folder).parent.iterdir()] == ["model"]
    assert not (store / "far.mar").exists()


@pytest.mark.parametrize("path", ["/", "/a/model", "/download"])
def test_what_is_downloaded_may_have_any_name(tmp_path: Path, path: str) -> None:
    content = make_archive(tmp_path / "far.mar", "far").read_bytes()
    with web_server({path: (200, {}, content)}) as (address, _):
        entry = loader_for(tmp_path, f"allowed_urls={address}/.*")[0].load(Registration(address + path))
    assert entry.name == "far"
    assert [child.name for child in Path(entry.folder).parent.iterdir()] == ["model"]


@pytest.mark.parametrize("allowed", ["", "https://.*", "http://localhost.*", "http://127x0.*"])
def test_a_url_that_is_not_allowed_is_not_connected_to(tmp_path: Path, allowed: str) -> None:
    loader, _, repository = loader_for(tmp_path, f"allowed_urls={allowed}")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.mar"
        assert refusal_of(loader, url) == ("ModelNotFoundException", NOT_ALLOWED.format(url))
        with pytest.raises(TimeoutError):
            listener.accept()
    assert not repository.dropped


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.1", "2130706433", "[::ffff:127.0.0.1]"])
def test_only_the_operators_own_expressions_lead_a_client_into_a_private_network(tmp_path: Path, host: str) -> None:
    loader, _, repository = loader_for(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        url = f"http://{host}:{listener.getsockname()[1]}/x.mar"
        assert refusal_of(loader, url) == ("DownloadArchiveException", f"Failed to download archive from: {url}")
        with pytest.raises(TimeoutError):
            listener.accept()
    assert len(repository.dropped) == 1


def test_a_redirect_is_followed_only_to_where_it_may_lead(tmp_path: Path) -> None:
    make_store(tmp_path)
    content = make_archive(tmp_path / "far.mar", "far").read_bytes()
    pages: dict[str, tuple[int, dict[str, str], bytes]] = {"/far.mar": (200, {}, content)}
    with web_server(pages) as (address, asked):
        port = address.rpartition(":")[2]
        targets = {
            "/same": "/far.mar",
            "/private": f"http://localhost:{port}/far.mar",
            "/file": f"file://{tmp_path}/far.mar",
            "/upward": f"{address}/../far.mar",
            "/user": address.replace("//", "//a@") + "/far.mar",
        }
        pages |= {path: (302, {"Location": target}, b"") for path, target in targets.items()}
        by_operator = loader_for(tmp_path)[0].load(Registration(f"{address}/same"), at_startup=True)
        assert by_operator.name == "far"
        assert asked == ["/same", "/far.mar"]
        for path in ("/private", "/file", "/upward", "/user"):
            asked.clear()
            failure = ("DownloadArchiveException", f"Failed to download archive from: {address}{path}")
            with pytest.raises(Refusal) as caught:
                loader_for(tmp_path)[0].load(Registration(address + path), at_startup=True)
            assert (caught.value.kind, str(caught.value)) == failure
            assert asked == [path]
        explicit = f"allowed_urls={address}/.*,http://localhost:{port}/.*"
        assert loader_for(tmp_path, explicit)[0].load(Registration(f"{address}/private")).name == "far"
        explicit = f"allowed_urls={address}/.*"
        assert refusal_of(loader_for(tmp_path, explicit)[0], f"{address}/private")[0] == "DownloadArchiveException"


def test_a_download_has_limits(tmp_path: Path) -> None:
    pages = {
        "/large.mar": (200, {}, bytes(5000)),
        "/short.mar": (200, {"Content-Length": "9000"}, bytes(5000)),
        "/gone.mar": (404, {}, b""),
    }
    with web_server(pages) as (address, _):
        for path, limits in {"/large.mar": {"max_bytes": 4999}, "/short.mar": {}, "/gone.mar": {}}.items():
            loader, _, repository = loader_for(tmp_path, f"allowed_urls={address}/.*", **limits)
            assert refusal_of(loader, address + path)[0] == "DownloadArchiveException"
            assert len(repository.dropped) == 1 and not list((tmp_path / "unpacked").iterdir())
        loader = loader_for(tmp_path, f"allowed_urls={address}/.*", seconds=-1)[0]
        assert refusal_of(loader, f"{address}/large.mar")[0] == "DownloadArchiveException"


# Which value wins.


def test_options_hold_what_the_engine_needs(tmp_path: Path) -> None:
    text = "service_envelope=json\ndecode_input_request=false\nlimit_max_image_pixels=false\njob_queue_size=7"
    options = load(tmp_path, text, handler="other.py", response_timeout="3").options
    assert options["manifest"]["model"]["modelName"] == "noop"
    expected = {
        **{"model_name": "noop", "model_version": "1.0", "handler": "other.py", "runtime": "python", "requirements": None},
        **{"service_envelope": "json", "decode_input": False, "limit_max_image_pixels": False},
        **{"batch_size": 1, "max_batch_delay": 100, "response_timeout": 3, "startup_timeout": 120, "job_queue_size": 7},
        **{"loaded_at_startup": False, "model_config": {}},
    }
    assert options.items() >= expected.items()


def test_the_request_wins_over_the_archive_and_that_over_the_properties(tmp_path: Path) -> None:
    make_store(tmp_path)
    models = 'models={"tuned": {"1.0": {"batchSize": 2, "maxBatchDelay": 20, "responseTimeout": 22, "minWorkers": 2}}}'
    config = "batchSize: 3\nmaxBatchDelay: 30\nminWorkers: '3'\nmaxWorkers: 9\nresponseTimeout: [1]\njobQueueSize: 5\n"
    config += "when: 2024-01-01\n"
    make_archive(tmp_path / "store" / "tuned.mar", "tuned", config=config)
    entry = load(tmp_path, models, url="tuned.mar", batch_size="4")
    picked = [entry.options[name] for name in ("batch_size", "max_batch_delay", "response_timeout", "job_queue_size")]
    assert picked == [4, 30, 22, 5]
    assert (entry.workers, entry.max_workers) == (3, 9)
    assert entry.options["model_config"]["when"] == "2024-01-01"
    assert load(tmp_path, "default_workers_per_model=2").workers == 2
    assert load(tmp_path, "default_workers_per_model=2", initial_workers="0").workers == 0
    assert load(tmp_path, batch_size="0", max_batch_delay="-5").options["batch_size"] == 1


def test_packages_are_installed_only_if_that_is_allowed(tmp_path: Path) -> None:
    make_store(tmp_path)
    make_archive(tmp_path / "store" / "needs.mar", "needs", requirementsFile="service.py")
    assert load(tmp_path, url="needs.mar").options["requirements"] is None
    loader, _, repository = loader_for(tmp_path, "install_py_dep_per_model=true")
    message = "Custom pip package installation failed for model needs"
    assert refusal_of(loader, "needs.mar") == ("ModelException", message)
    assert len(repository.dropped) == 1


# At the start.


def test_the_named_models_are_loaded_at_start(tmp_path: Path) -> None:
    make_store(tmp_path)
    loader, properties, _ = loader_for(tmp_path, f"load_models=a=noop.mar,folder,{tmp_path}/outside.mar")
    entries = startup_entries(properties, loader)
    assert [entry.name for entry in entries] == ["a", "unpacked", "outside"]
    assert all(entry.workers == 1 and entry.options["loaded_at_startup"] for entry in entries)
    assert startup_entries(*reversed(loader_for(tmp_path, "load_models=none")[:2])) == []


def test_an_archive_that_was_named_and_cannot_be_served_ends_the_start(tmp_path: Path) -> None:
    for named, reason in {"nope.mar": "Model not found at: nope.mar", "noop.mar,noop.mar": "already registered"}.items():
        loader, properties, _ = loader_for(tmp_path, f"load_models={named}")
        with pytest.raises(ArchiveRefused, match=f"cannot be served: .*{reason}"):
            startup_entries(properties, loader)


def test_of_a_whole_store_what_cannot_be_served_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader, properties, _ = loader_for(tmp_path, "load_models=all")
    (tmp_path / "store" / "bad.mar").write_text("no archive")
    (tmp_path / "store" / "notes.txt").write_text("no archive")
    entries = startup_entries(properties, loader)
    assert [entry.name for entry in entries] == ["unpacked", "noop"]
    assert "bad.mar cannot be served: " in caplog.text and "notes.txt" not in caplog.text
    with pytest.raises(ModelLoadError, match="model store"):
        startup_entries(Properties.parse("load_models=all"), loader)


def test_a_snapshot_is_loaded_as_it_is_with_its_default_versions(tmp_path: Path) -> None:
    make_store(tmp_path)
    make_archive(tmp_path / "store" / "noop2.mar", version="2.0")
    versions = {
        "1.0": {"marName": "noop.mar", "minWorkers": 2, "batchSize": 5},
        "2.0": {"marName": "noop2.mar", "defaultVersion": True},
    }
    snapshot = json.dumps({"name": "x.cfg", "models": {"noop": versions}})
    loader, properties, _ = loader_for(tmp_path, f"model_snapshot={snapshot}")
    entries = startup_entries(properties, loader)
    assert [(entry.version, entry.workers, entry.options["batch_size"]) for entry in entries] == [("2.0", 1, 1), ("1.0", 2, 5)]
