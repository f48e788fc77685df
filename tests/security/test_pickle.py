"""Nothing that comes over the network is unpickled, whatever it says it is, and no model file but those that are trusted."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servekit.batcher import Backlog
from servekit.codecs.npy import load_npy
from servekit.config import Settings
from servekit.desired import Entry
from servekit.errors import InvalidInput, ModelLoadError
from servekit.loading import load_entry
from servekit.spec import read_spec
from tests import networks
from tests.security.apps import Address, Apps
from tests.security.hostile import NPY, Canary, npy, object_npy, object_npz, pickled
from tests.security.watch import Watch
from tests.versions import edit, write_regressor

KINDS = (
    *("application/vnd.bentoml+pickle", "application/x-pickle", "application/python-pickle", "application/pickle"),
    *("application/octet-stream", "application/x-npy", "application/x-npz", "application/x-torch", "application/json"),
    *("text/csv", "image/png", "application/x-image", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
)
HEADERS = {
    "Payload-Container": "NdarrayContainer",  # BentoML's, by which its runner chose what to unpickle
    "Payload-Meta": '{"format": "pickle5", "pickle_bytes_str": "gASVCg=="}',
    "Batch-Size": "1",
    "Args-Number": "1",
    "X-Content-Type": "application/x-pickle",
    "Content-Transfer-Encoding": "pickle",
}


def torch_file(value: Any) -> bytes:
    """Return what `torch.save` makes of `value`."""
    import torch

    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def bodies(canary: Path) -> list[bytes]:
    """Return everything that would be a pickle to someone, each of which writes the file `canary`."""
    plain = pickled(canary)
    part = b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.pkl\"\r\n\r\n" + plain + b"\r\n--x--\r\n"
    by_name = f"cpathlib\nPosixPath.write_text\n(cpathlib\nPosixPath\n(V{canary}\ntRVrun\ntR.".encode()  # protocol 0
    packed = [object_npy(canary), object_npz(canary), torch_file(Canary(canary))]
    return [plain, pickle.dumps(Canary(canary), 0), by_name, part, *packed]


@pytest.mark.parametrize("kind", KINDS)
def test_cve_2025_27520_no_address_unpickles_whatever_the_content_type(
    apps: Apps, watched: Watch, tmp_path: Path, kind: str
) -> None:
    """BentoML (CVE-2025-32375, CVE-2024-2912, CVE-2024-9070), LightLLM (CVE-2026-26220), LeRobot (CVE-2026-25874)."""
    canary = tmp_path / "canary"
    with watched.off():
        sent = bodies(canary)
    for address in takers(apps):
        for body in sent:
            answer = apps.ask(address.app, address.method, address.path, body, kind, HEADERS)
            assert answer.status_code < 500 or answer.status_code == 501, (address, answer.data[:200])
    assert not canary.exists()


def test_cve_2025_27520_a_pickle_is_told_that_it_is_not_read(apps: Apps) -> None:
    for path in ("/predict", "/linear/predict", "/mnist/predict", "/predict/batch", "/mnist/predict/batch"):
        assert apps.ask("none", "POST", path, pickle.dumps(1), "application/x-pickle").status_code == 415
    for name in ("sagemaker", "mlflow"):
        assert apps.ask(name, "POST", "/invocations", pickle.dumps(1), "application/x-pickle").status_code == 415


def takers(apps: Apps) -> list[Address]:
    """Return the addresses that read a body and answer with predictions; a handler of TorchServe's gets what is sent."""
    names = ("none", "sagemaker", "mlflow", "vertex", "azure", "inference")
    words = ("predict", "infer", "invocations", "score", "classify", "regress")
    return [each for each in apps.addresses(*names, method="POST") if any(word in each.path for word in words)]


def test_the_addresses_of_every_contract_are_among_those_that_are_asked(apps: Apps) -> None:
    asked = {(each.app, each.path) for each in takers(apps)}
    assert {
        *(("none", path) for path in ("/predict", "/predict/batch", "/linear/predict", "/mnist/predict/batch")),
        *(("none", path) for path in ("/v1/models/linear:predict", "/v2/models/linear/infer", "/predictions/linear")),
        *(("sagemaker", "/invocations"), ("azure", "/score"), ("vertex", "/predict"), ("inference", "/predictions/linear")),
    } <= asked


@pytest.mark.parametrize("name", ["sagemaker", "mlflow"])
def test_sagemaker_inference_npy_objects_are_refused(apps: Apps, watched: Watch, tmp_path: Path, name: str) -> None:
    """The toolkit's own decoder reads x-npy with allow_pickle=True; it has no CVE, and is not mended."""
    with watched.off():
        with_object, packed = object_npy(tmp_path / "canary"), object_npz(tmp_path / "canary")
    answer = apps.ask(name, "POST", "/invocations", with_object, NPY)
    assert answer.status_code == 400 and "kind that is not read" in answer.get_data(as_text=True)
    for kind in (NPY, "application/x-npz"):
        assert apps.ask(name, "POST", "/invocations", packed, kind).status_code in (400, 415)
    assert not (tmp_path / "canary").exists()


DESCRIPTION = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
HEADS = {
    "a shape of a terabyte": npy(DESCRIPTION % ("<f4", (2**40,))),
    "a shape beyond 64 bits": npy(DESCRIPTION % ("<f4", (2**40, 2**40))),
    "a shape that wraps": npy(DESCRIPTION % ("<f4", (2**62, 4)), bytes(64)),
    "a negative shape": npy(DESCRIPTION % ("<f4", (-1, -4)), bytes(16)),
    "a shape of truths": npy(DESCRIPTION % ("<f4", (True,)), bytes(4)),
    "a header above numpy's own limit": npy(DESCRIPTION % ("<f4", (1,)) + " " * 10_001, bytes(4)),
    "a header of 4 GB announced": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "a deep header": npy("(" * 9000, bytes(4)),
    "a header of operators": npy("-" * 9000 + "1", bytes(4)),
    "a number of thousands of digits": npy(DESCRIPTION % ("<f4", "(" + "9" * 9000 + ",)")),
    "a header that calls": npy("__import__('os').system('true')"),
    "objects": npy(DESCRIPTION % ("|O", (1,)), pickle.dumps(1)),
    "objects in a record": npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }", bytes(8)),
    "voids": npy(DESCRIPTION % ("|V100", (1,)), bytes(100)),
    "no values of endless size": npy(DESCRIPTION % ("<f4", (0, 2**62))),
    "33 axes": npy(DESCRIPTION % ("<f4", (1,) * 33), bytes(4)),
}


@pytest.mark.parametrize("case", HEADS)
def test_sagemaker_inference_npy_headers_take_no_memory(apps: Apps, case: str) -> None:
    with pytest.raises(InvalidInput):
        load_npy(HEADS[case])
    for name in ("sagemaker", "mlflow"):
        assert apps.ask(name, "POST", "/invocations", HEADS[case], NPY).status_code in (400, 413)


# Model files.


@pytest.fixture
def folder(tmp_path: Path, watched: Watch) -> Path:
    """A version folder of a regressor, in a store of its own."""
    with watched.off():
        return write_regressor(tmp_path / "store", networks.Double())


def loaded(folder: Path, kind: str = "servekit", **settings: Any) -> None:
    """Load the model in `folder` as a worker does."""
    entry = Entry("linear", "1", kind, "linear/1", str(folder), 1, 1, {"startup_timeout": 20, "batch_size": 1})
    load_entry(entry, Settings(model_store=folder.parent.parent, **settings), Backlog(10))


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_cve_2025_32434_weights_are_read_as_weights_only(
    folder: Path, watched: Watch, tmp_path: Path, engine: str
) -> None:
    """torch.load (CVE-2026-24747), vLLM (CVE-2025-62164, CVE-2026-56340)."""
    from servekit.spec import sha256

    canary = tmp_path / "canary"
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + pickle.dumps({}) + pickled(canary)  # torch's old format
    for content in (torch_file({"x": Canary(canary)}), pickled(canary), legacy, b"PK\x05\x06" + bytes(18)):
        (folder / "model.pth").write_bytes(content)
        edit(folder, files={"model.pth": sha256(content)})
        with pytest.raises(ModelLoadError, match="holds no state dict"):
            loaded(folder, engine=engine)
        assert not canary.exists()
    watched.seen = [seen for seen in watched.seen if "pickle.find_class" not in seen or str(canary) in seen]


def test_a_file_that_was_exchanged_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    (folder / "model.pth").write_bytes(pickled(tmp_path / "canary"))
    with pytest.raises(ModelLoadError, match="SHA-256 differs"):
        loaded(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("file", ["model.pt2", "model.pt", "model.pth", "model.so", "model.bin"])
def test_pt2_and_torchscript_are_refused_where_only_trusted_models_are_served(
    tmp_path: Path, watched: Watch, file: str
) -> None:
    """torch.export.load falls back to weights_only=False on any exception, in torch 2.13 still."""
    archive = tmp_path / "archive"
    (archive / "MAR-INF").mkdir(parents=True)
    manifest = '{"model": {"modelName": "m", "serializedFile": "%s", "handler": "image_classifier"}}' % file
    (archive / "MAR-INF" / "MANIFEST.json").write_text(manifest)
    with zipfile.ZipFile(archive / file, "w") as made:
        made.writestr("data/weights/model.pkl", pickled(tmp_path / "canary"))
        made.writestr("model/data.pkl", pickled(tmp_path / "canary"))
    entry = Entry("m", "1", "torchserve", "m", str(archive), 1, 1, options(manifest))
    with pytest.raises(ModelLoadError, match=f"{file} can run code of its own"):
        load_entry(entry, Settings(trusted_models_only=True), Backlog(10))
    assert not (tmp_path / "canary").exists()
    watched.seen.clear()  # what the handler imports, it imports from its own packages


def options(manifest: str) -> dict[str, Any]:
    """Return what a registration says of an archive."""
    import json

    return {"startup_timeout": 60, "batch_size": 1, "job_queue_size": 1, "max_batch_delay": 1, "response_timeout": 9} | {
        "manifest": json.loads(manifest),
        "model_name": "m",
        "handler": "image_classifier",
    }


@pytest.mark.parametrize("kind", ["azure", "sagemaker"])
def test_code_of_the_clouds_is_refused_where_only_trusted_models_are_served(tmp_path: Path, kind: str) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(f"open({str(canary)!r}, 'w')")
    (tmp_path / "score.py").write_text(f"open({str(canary)!r}, 'w')")
    with pytest.raises(ModelLoadError, match="code"):
        loaded(tmp_path / "score.py" if kind == "azure" else tmp_path, kind, trusted_models_only=True)
    assert not canary.exists()


CALLS = ("subprocess:Popen", "os:system", "os:abort", "builtins:exec", "pathlib:Path", "servekit.spec:resolve", "numpy:load")


@pytest.mark.parametrize("reference", CALLS)
def test_model_json_calls_nothing_that_is_no_handler_and_no_network(folder: Path, reference: str) -> None:
    for member in ("handler", "network"):
        edit(folder, **{"handler": "servekit.handlers.base:Handler", "network": "tests.networks:Double", member: reference})
        with pytest.raises(ModelLoadError, match="it is not a (servekit.Handler|torch.nn.Module)"):
            loaded(folder, engine="torch")


def test_cve_2025_23316_a_model_json_names_no_file_of_another_folder(folder: Path, tmp_path: Path) -> None:
    for name in ("../1/model.pth", "/etc/passwd", "a/b", "", "..", "//host/share"):
        edit(folder, files={name: "0" * 64})
        with pytest.raises(ModelLoadError, match="without a folder|names no model.pth"):
            loaded(folder, engine="torch")
    for reference in ("a.b", "../x:Y", "os;x:Y", "http://x:Y", "\\\\host\\x:Y", "x:Y()", "x:Y.z", ""):
        edit(folder, handler=reference)
        with pytest.raises(ModelLoadError, match="package.module:Class"):
            read_spec(folder)


def test_a_version_folder_whose_files_are_links_out_of_it_is_not_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes((folder / "model.pth").read_bytes())
    (tmp_path / "described.json").write_bytes((folder / "model.json").read_bytes())
    (folder / "model.pth").unlink()
    (folder / "model.pth").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelLoadError, match="model.pth is a link out of the model's folder"):
        loaded(folder, engine="torch")
    (folder / "model.json").unlink()
    (folder / "model.json").symlink_to(tmp_path / "described.json")
    with pytest.raises(ModelLoadError, match="model.json is a link out of the model's folder"):
        read_spec(folder)


def test_a_model_json_that_has_no_end_is_not_read(folder: Path) -> None:
    import os

    (folder / "model.json").unlink()
    os.mkfifo(folder / "model.json")
    with pytest.raises(ModelLoadError, match="is no file"):
        read_spec(folder)
    (folder / "model.json").unlink()
    with (folder / "model.json").open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(ModelLoadError, match="larger than"):
        read_spec(folder)


def test_arrays_that_are_answered_are_written_without_pickle(apps: Apps) -> None:
    answer = apps.ask("sagemaker", "POST", "/invocations", b"5\n", "text/csv", {"Accept": NPY})
    assert np.load(io.BytesIO(answer.data), allow_pickle=False).shape == (1,)
