import json
from pathlib import Path
from typing import Any

import pytest

from servekit.errors import ModelLoadError
from servekit.spec import ModelSpec, TensorSpec, read_file, read_spec, sha256, write_spec

SPEC = ModelSpec(
    handler="servekit.handlers.base:Handler",
    network="models.linear:LinearRegressor",
    inputs=(TensorSpec("value", "float32", (-1, 1)),),
    outputs=(TensorSpec("prediction", "float32", (-1, 1)),),
    files={"model.pth": sha256(b"weights")},
    labels=("a", "b"),
    options={"background": "black"},
    max_batch_rows=8,
    training={"scores": {"accuracy": 0.5}},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_spec(tmp_path, SPEC)
    assert read_spec(tmp_path) == SPEC


def test_files_are_checked_before_they_are_used(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="model.pth cannot be read .No such file"):
        read_file(tmp_path, SPEC, "model.pth")
    (tmp_path / "model.pth").write_bytes(b"weights")
    assert read_file(tmp_path, SPEC, "model.pth") == b"weights"
    (tmp_path / "model.pth").write_bytes(b"weightz")
    with pytest.raises(ModelLoadError, match="model.pth is not the file .* .SHA-256 differs.; train the model again"):
        read_file(tmp_path, SPEC, "model.pth")
    with pytest.raises(ModelLoadError, match="names no other.bin"):
        read_file(tmp_path, SPEC, "other.bin")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="model.json is missing; train the model again"):
        read_spec(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ModelLoadError, match="model.json cannot be used"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"handlr": "x:y"}, "Unknown member handlr; did you mean handler?"),
        ({"handler": None}, "it lacks handler"),
        ({"handler": "os.system"}, "handler must have the form"),
        ({"network": 5}, "network must have the form"),
        ({"inputs": []}, "inputs must be a list"),
        ({"inputs": ["x"]}, "exactly name, dtype and shape"),
        ({"inputs": [{"name": "", "dtype": "float32", "shape": [-1]}]}, "must be a word"),
        ({"inputs": [{"name": "x", "dtype": "complex", "shape": [-1]}]}, "dtype of x must be one of"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [3]}]}, "begins with -1"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 0]}]}, "above 0"),
        ({"files": []}, "files must be an object"),
        ({"files": {"../model.pth": "0"}}, "without a folder"),
        ({"labels": [1]}, "labels must be"),
        ({"max_batch_rows": 0}, "max_batch_rows must be"),
        ({"max_batch_rows": True}, "max_batch_rows must be"),
        ({"options": 3}, "options must be an object"),
    ],
)
def test_a_lie_in_model_json_is_named(tmp_path: Path, members: dict[str, Any], reason: str) -> None:
    content = SPEC.to_json() | members
    (tmp_path / "model.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(ModelLoadError) as caught:
        read_spec(tmp_path)
    assert reason in str(caught.value)
    assert str(tmp_path / "model.json") in str(caught.value)
