"""Management that fetches what it is told to: TorchServe's ShellTorch, and names that lead out of the store."""

import json
import socket
import urllib.error
from pathlib import Path
from urllib.parse import quote

import pytest

from servekit.errors import ModelNotFound
from servekit.spec import scan
from servekit.stores import entries_in
from servekit.torchserve.sources import SILENCE_SECONDS, _opener, is_allowed
from tests.security.apps import PLATFORMS, Apps
from tests.security.hostile import JSON
from tests.security.watch import Watch

# An address of this machine in the many ways that URLs can write it; {port} is that of a listener.
OWN = (
    *("127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::]"),
    *("[::ffff:127.0.0.1]", "127.0.0.1.", "\u2460\u2461\u2466.0.0.1", "user@127.0.0.1"),
)
ELSEWHERE = (
    *("http://169.254.169.254/latest/meta-data/x.mar", "http://metadata.google.internal/x.mar", "https://10.0.0.1/x.mar"),
    *("file:///etc/passwd", "file://localhost/etc/passwd", "file://evil/share/x.mar", "FILE:///etc/passwd", "file:/etc/passwd"),
    *("\\\\evil\\share\\x.mar", "//evil/share/x.mar", "ftp://127.0.0.1/x.mar", "gopher://127.0.0.1/x", "jar:file:///x!/y"),
    *("data:application/zip;base64,UEsFBg==", "s3://bucket/x.mar", "dict://127.0.0.1:11211/", "http:///x.mar", "/etc/passwd"),
)
UPWARD = (
    *("../linear", "..", ".", "a/../../b", "%2e%2e%2flinear", "%252e%252e%252flinear", "%25252e%25252e/x", "..%2f..%2fetc"),
    *("..%5c..%5cx", "..%c0%af..", "%c0%ae%c0%ae/x", "\u2025/x", "\uff0e\uff0e/x", "\u2024\u2024/x", "linear\0", "linear%00"),
    *("x" * 300, "x" * 4000, "/etc/passwd", "~root", "$HOME", "./linear", "lin\near", "\u202elinear", ".servekit"),
)


@pytest.mark.parametrize("host", OWN)
def test_cve_2023_43654_a_url_of_this_machine_is_not_connected_to(apps: Apps, watched: Watch, host: str) -> None:
    with watched.off():
        listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        listener.setblocking(False)
        url = f"http://{host}:{listener.getsockname()[1]}/x.mar"
        for ask in ({"path": "/models?url=" + quote(url)}, {"path": "/models", "body": json.dumps({"url": url}), "kind": JSON}):
            answer = apps.ask("management", "POST", **ask)
            assert answer.status_code in (400, 404), answer.data
        with pytest.raises(BlockingIOError):
            listener.accept()
    looked_up = [seen for seen in watched.seen if seen.startswith(("socket.getaddrinfo", "urllib.Request"))]
    assert looked_up == watched.seen  # asked for its address, and no more
    watched.seen.clear()


@pytest.mark.parametrize("url", ELSEWHERE)
def test_cve_2023_43654_no_other_url_leads_anywhere(apps: Apps, watched: Watch, url: str) -> None:
    answer = apps.ask("management", "POST", "/models?initial_workers=1&url=" + quote(url))
    assert answer.status_code in (400, 404), answer.data
    assert apps.ask("management", "GET", "/models").json["models"] == [{"modelName": "linear", "modelUrl": "linear"}]  # type: ignore[index]
    watched.seen = [seen for seen in watched.seen if not seen.startswith(("socket.getaddrinfo", "urllib.Request"))]


def test_cve_2023_43654_a_name_that_means_this_machine_only_when_it_is_connected_to(watched: Watch) -> None:
    with watched.off(), socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with pytest.raises(urllib.error.URLError, match="private network"):
            _opener(lambda target: True, is_public=True).open(
                f"http://localhost:{listener.getsockname()[1]}/x", timeout=SILENCE_SECONDS
            )
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("name", UPWARD)
def test_cve_2024_35198_a_name_leads_nowhere_but_into_the_store(apps: Apps, name: str) -> None:
    """TorchServe's list of allowed URLs was compared with paths before `..` was taken out of them."""
    for path in ("/models?url=" + quote(name), "/models?url=linear&model_name=" + quote(name)):
        answer = apps.ask("management", "POST", path)
        assert 400 <= answer.status_code < 500, (path, answer.data)
    assert not is_allowed("file:///models/../etc/passwd", ("file:///models/[^/]*",))


@pytest.mark.parametrize("name", UPWARD)
def test_cve_2023_1177_no_model_of_another_folder_is_asked_or_loaded(apps: Apps, name: str) -> None:
    """MLflow (CVE-2023-6831, -6909, -1483, CVE-2025-11201, CVE-2026-2033) and Triton (CVE-2025-23316, CVE-2026-24208)."""
    for part in {quote(name, safe="/"), quote(name, safe="")}:
        for method, path in (
            ("POST", f"/v1/models/{part}:predict"),
            ("GET", f"/v1/models/{part}"),
            ("GET", f"/v2/models/{part}/config"),
            ("POST", f"/v2/models/{part}/infer"),
            ("POST", f"/v2/repository/models/{part}/load"),
            ("POST", f"/v2/repository/models/{part}/unload"),
            ("POST", f"/v2/models/linear/versions/{part}/infer"),
            ("POST", f"/predictions/{part}"),
            ("POST", f"/predictions/linear/{part}"),
        ):
            answer = apps.ask("none", method, path, b"{}", JSON)
            assert 300 <= answer.status_code < 500, (path, answer.status_code, answer.data[:200])
            assert b"root:" not in answer.data
    with pytest.raises(ModelNotFound):
        entries_in(apps.store, name)
    with pytest.raises(ModelNotFound):
        entries_in(apps.store, "linear", version=name)


ASSETS = ("../x.json", "..%2f..%2fsetup.cfg", "%2e%2e/docs.html", "/etc/passwd", "docs.html", "x\0.png")


@pytest.mark.parametrize("name", ASSETS)
def test_cve_2023_6909_no_file_beside_the_pages_own_is_given(apps: Apps, name: str) -> None:
    for platform in PLATFORMS:
        assert apps.ask(platform, "GET", f"/docs/{quote(name)}").status_code in (404, 400, 308)


PLACES = ("/etc", "{store}/../secret", "{store}/link", "{store}", "", "linear", "file://{store}/linear", "\0", "{store}//..")


@pytest.mark.parametrize("url", PLACES)
def test_cve_2025_11201_a_multi_model_endpoint_loads_from_its_store_alone(
    apps: Apps, watched: Watch, tmp_path: Path, url: str
) -> None:
    link = apps.store / "link"
    with watched.off():
        link.symlink_to(tmp_path)
    try:
        body = json.dumps({"model_name": "evil", "url": url.format(store=apps.store)})
        answer = apps.ask("multi_model", "POST", "/models", body, JSON)
        assert answer.status_code in (400, 404), answer.data
    finally:
        link.unlink()


def test_cve_2024_35198_a_link_out_of_the_store_is_no_model(
    apps: Apps, watched: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside, inside = apps.store / "outside", apps.store / "inside"
    with watched.off():
        (tmp_path / "elsewhere" / "1").mkdir(parents=True)
        outside.symlink_to(tmp_path / "elsewhere")
        inside.symlink_to(apps.store / "linear")
    try:
        assert "outside" not in scan(apps.store) and "inside" in scan(apps.store)
        assert "outside: it is a link out of the model store" in caplog.text.replace("/1", "")
        answer = apps.ask("none", "POST", "/v2/repository/models/outside/load", b"{}", JSON)
        assert answer.status_code in (400, 404)
        names = [row["name"] for row in apps.ask("none", "POST", "/v2/repository/index", b"", JSON).json]  # type: ignore[union-attr]
        assert "outside" not in names
    finally:
        outside.unlink()
        inside.unlink()
