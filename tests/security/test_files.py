"""Model files that reach for what lies elsewhere, and configurations that would fill the memory."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from servekit.batcher import Backlog
from servekit.config import Settings
from servekit.desired import Entry
from servekit.errors import ModelLoadError
from servekit.loading import load_entry
from servekit.spec import scan, sha256
from servekit.stores import entries_in
from servekit.ts.torch_handler.formats import load_onnx
from tests import networks, triton_models
from tests.security.apps import Apps
from tests.security.hostile import JSON
from tests.security.watch import Watch
from tests.versions import write_regressor


def external(location: str) -> bytes:
    """Return an ONNX file that adds four weights, which lie in the file `location`."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        weights.external_data.add(key=key, value=value)
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", shape[:1], shape[1:], [weights])
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version folder of Triton's layout with weights beside it, inside and outside of its model's folder."""
    made = triton_models.write(tmp_path / "store", "m", onnx=external("weights.bin")) / "1"
    for path in (made / "weights.bin", tmp_path / "secret.bin", tmp_path / "store" / "secret.bin"):
        path.write_bytes(np.float32([1, 2, 3, 4]).tobytes())
    (made / "link.bin").symlink_to(tmp_path / "secret.bin")
    return made


def load(folder: Path, **settings: Any) -> None:
    """Load what lies in a version folder of Triton's layout."""
    entry = Entry("m", "1", "triton", "m/1", str(folder), 1, 1)
    load_entry(entry, Settings(model_store=folder.parent.parent, **settings), Backlog(10))


OUTSIDE = (
    *("../../secret.bin", "../../../secret.bin", "./../../secret.bin", "x/../../../secret.bin"),
    *("{root}/secret.bin", "link.bin"),
)


@pytest.mark.parametrize("location", OUTSIDE)
def test_cve_2024_27318_external_data_of_onnx_stays_in_its_folder(folder: Path, tmp_path: Path, location: str) -> None:
    """onnx (CVE-2022-25882, CVE-2024-27318, CVE-2024-5187): weights that lie in a file of another folder."""
    load(folder)  # what lies beside it is read
    content = external(location.format(root=tmp_path))
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ModelLoadError, match="cannot be served"):
        load(folder)
    with pytest.raises(Exception, match="External data path|external data"):
        load_onnx(str(folder / "model.onnx"), "cpu")


@pytest.mark.parametrize("name", ["../../x.onnx", "/etc/passwd", "../2/model.onnx", "x\0", "link"])
def test_cve_2026_24208_a_config_names_no_file_outside_of_its_model(folder: Path, tmp_path: Path, name: str) -> None:
    """Triton (CVE-2026-24208, CVE-2026-47627): the names of files in a model's configuration."""
    (folder / "link").symlink_to(tmp_path / "secret.bin")
    model = folder.parent
    for field in (f"default_model_filename: {json.dumps(name)}", label(name), warm_up(name)):
        (model / "config.pbtxt").write_text(f'name: "m" backend: "onnxruntime" max_batch_size: 4 {field}')
        with pytest.raises(ModelLoadError):
            load(folder)


def label(name: str) -> str:
    return f'output {{ name: "y" data_type: TYPE_FP32 dims: 4 label_filename: {json.dumps("../" + name)} }}'


def warm_up(name: str) -> str:
    data = f'key: "x" value {{ data_type: TYPE_FP32 dims: 4 input_data_file: {json.dumps("../" + name)} }}'
    return f'model_warmup {{ name: "w" batch_size: 1 inputs {{ {data} }} }}'


HUGE = {
    "a batch of 2**40": "max_batch_size: 1099511627776",
    "a warm-up of 2**60 values": 'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 '
    "dims: 1152921504606846976 zero_data: true } } }",
    "a warm-up of a batch of 2**31": 'model_warmup { name: "w" batch_size: 2147483647 inputs { key: "x" value { '
    "data_type: TYPE_FP32 dims: 4 zero_data: true } } }",
    "2**31 warm-ups": 'model_warmup { name: "w" batch_size: 1 count: 4294967295 inputs { key: "x" value { '
    "data_type: TYPE_FP32 dims: 4 zero_data: true } } }",
    "dims of 2**60": 'input { name: "x" data_type: TYPE_FP32 dims: 1152921504606846976 }',
    "a million dims": 'input { name: "x" data_type: TYPE_FP32 dims: [' + ",".join(["1"] * 100_000) + "] }",
    "negative dims": 'input { name: "x" data_type: TYPE_FP32 dims: -5 }',
    "deep": "parameters { key: 'a' " * 1000,
    "two megabytes": "# " + "x" * 2**21,
}


@pytest.mark.parametrize("case", HUGE)
def test_cve_2026_47627_a_config_of_huge_sizes_is_refused(folder: Path, case: str) -> None:
    (folder.parent / "config.pbtxt").write_text(f'name: "m" backend: "onnxruntime" {HUGE[case]}')
    with pytest.raises(ModelLoadError):
        load(folder)


def test_cve_2026_47627_a_config_that_a_client_sends_is_bounded(apps: Apps, watched: Watch) -> None:
    with watched.off():
        model = triton_models.write(apps.store, "sent", onnx=triton_models.unary())
    config = json.dumps({"name": "sent", "maxBatchSize": 2**40, "defaultModelFilename": "../../linear/1/model.onnx"})
    for text in (config, "[" * 10_000, '{"defaultModelFilename": "/etc/passwd"}', "{", '{"a": 1}'):
        body = json.dumps({"parameters": {"config": text}})
        answer = apps.ask("none", "POST", "/v2/repository/models/sent/load", body, JSON)
        assert answer.status_code in (400, 500) and "/etc" not in answer.get_data(as_text=True), answer.data
    body = json.dumps({"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}})
    assert apps.ask("none", "POST", "/v2/repository/models/sent/load", body, JSON).status_code == 400
    shutil.rmtree(model)  # others make servers of what is in this store


def test_a_link_of_a_version_leads_to_another_of_the_same_store_only(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_regressor(store, networks.Double())
    (store / "linear" / "2").symlink_to("1")
    (store / "linear" / "3").symlink_to(tmp_path)
    (store / "linear" / "4").symlink_to("/etc")
    (store / "linear" / "5").symlink_to("5")
    assert scan(store, warns=False) == {"linear": [1, 2]}
    (tmp_path / "alias").symlink_to(store)
    assert scan(tmp_path / "alias") == {"linear": [1, 2]}  # the operator may name the store by a link
    assert entries_in(tmp_path / "alias", "linear")[0].version == "2"


def test_a_hard_link_is_the_file_itself_and_its_hash_tells(tmp_path: Path) -> None:
    """No name tells a hard link from a file; what counts is whether it is the one that model.json describes."""
    folder = write_regressor(tmp_path / "store", networks.Double())
    (tmp_path / "secret").write_bytes(b"root:x:0:0")
    (folder / "model.pth").unlink()
    os.link(tmp_path / "secret", folder / "model.pth")
    entry = Entry("linear", "1", "servekit", "linear/1", str(folder), 1, 1)
    with pytest.raises(ModelLoadError, match="SHA-256 differs") as caught:
        load_entry(entry, Settings(model_store=tmp_path / "store", engine="torch"), Backlog(10))
    assert "root:" not in str(caught.value) and sha256(b"root:x:0:0") not in str(caught.value)


def test_the_onnx_package_writes_what_is_tested() -> None:
    assert onnx.load_from_string(external("a.bin")).graph.initializer[0].external_data[0].value == "a.bin"
