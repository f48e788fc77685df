"""The functions of inference.py are called as SageMaker's toolkit calls them, and their faults stay in the log."""

import concurrent.futures
import io
import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from servekit.engines.sagemaker import FAILED, SageMakerEngine
from servekit.errors import HandlerFailed, InvalidInput, ModelLoadError, NotAcceptable, UnsupportedMediaType
from servekit.exchange import RawRequest, RawResponse

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # models of that format are still around


def written(folder: Path, code: str, program: str = "inference.py") -> Path:
    path = folder / "code" / program
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return folder


def scripted(folder: Path, name: str = "model.pt") -> Path:
    torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 2)), str(folder / name))
    return folder


def load(folder: Path, environ: Mapping[str, str] = {}, **more: Any) -> SageMakerEngine:  # noqa: B006
    return SageMakerEngine("m", folder, environ, **more)


def ask(engine: SageMakerEngine, body: bytes, kind: str = "application/json", accept: str = "application/json") -> RawResponse:
    rows = np.empty(1, object)
    rows[0] = RawRequest(body, kind, accept, headers={"X-Mine": "1"})
    return engine({"request": rows})["response"][0]


FOUR = """
import helper

def model_fn(model_dir):
    return {"dir": model_dir, "helper": helper.WORD}

def input_fn(body, content_type):
    return [type(body).__name__, content_type]

def predict_fn(data, model):
    return data + [model["helper"]]

def output_fn(prediction, accept):
    return ",".join(prediction) + "," + accept
"""


def test_the_four_functions_are_called_in_turn(tmp_path: Path) -> None:
    folder = written(tmp_path, FOUR)
    (folder / "code" / "helper.py").write_text("WORD = 'mine'")
    answer = ask(load(folder), b"1", "text/csv", "text/plain")
    assert (answer.body, answer.content_type, answer.status) == (b"str,text/csv,mine,text/plain", "text/plain", 200)
    assert ask(load(folder), b"1", "application/x-npy").body.startswith(b"bytes,application/x-npy")


def test_transform_fn_takes_the_place_of_three(tmp_path: Path) -> None:
    code = """
import os
steps = []
def pre_model_fn(model_dir): steps.append("before")
def model_fn(model_dir, context):
    steps.append("load " + os.path.basename(context.system_properties["model_dir"]))
    return steps
def model_warmup_fn(model_dir, model): model.append("warm")
def transform_fn(model, body, content_type, accept, context):
    context.set_response_header(0, "X-Theirs", "2")
    context.set_response_status(202)
    return {"steps": model, "mine": context.get_request_header(0, "X-Mine")}, "application/x-own"
"""
    (tmp_path / "model").mkdir()
    answer = ask(load(written(tmp_path / "model", code)), b"1")
    assert json.loads(answer.body) == {"steps": ["before", "load model", "warm"], "mine": "1"}
    assert (answer.content_type, answer.status) == ("application/x-own", 202)
    assert answer.headers == {"X-Theirs": "2"}


def test_the_program_may_have_another_name(tmp_path: Path) -> None:
    folder = written(tmp_path, "def model_fn(d): return 1\ndef transform_fn(m, b, c, a): return 'own'", "serving/own.py")
    assert ask(load(folder, {"SAGEMAKER_PROGRAM": "serving/own.py"}), b"").body == b"own"


def test_two_models_do_not_meet(tmp_path: Path) -> None:
    engines = []
    for word in ("a", "b"):
        folder = written(tmp_path / word, "import helper\ndef model_fn(d): return 1\ndef transform_fn(m, b, c, a): return helper.W")
        (folder / "code" / "helper.py").write_text(f"W = {word!r}")
        engines.append(load(folder))
    assert [ask(engine, b"").body for engine in engines] == [b"a", b"b"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def model_fn(d): raise ValueError('no weights')", "ValueError: no weights .*inference.py:1"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("def transform_fn(m, b, c, a): pass\ndef input_fn(b, c): pass", "leave one side out"),
        ("def model_fn(): pass", "model_fn takes 0 arguments"),
        ("x = (", "SyntaxError"),
        ("", "exactly one .pt or .pth"),
    ],
)
def test_code_that_cannot_be_loaded_says_why(tmp_path: Path, code: str, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        load(written(tmp_path, code))


def test_trusted_models_bring_no_code(tmp_path: Path) -> None:
    for folder in (written(tmp_path / "code", "raise SystemError"), tmp_path):
        with pytest.raises(ModelLoadError, match="only trusted"):
            load(folder, trusted_only=True)


def test_a_fault_is_told_in_the_log_and_not_to_the_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    code = "def model_fn(d): return 1\ndef transform_fn(m, b, c, a): raise KeyError('secret\\nline')"
    engine = load(written(tmp_path, code), on_failure=told.append)
    with caplog.at_level(logging.ERROR), pytest.raises(HandlerFailed) as failed:
        ask(engine, b"1")
    assert (str(failed.value), failed.value.status) == (FAILED, 500)
    assert "secret" in caplog.text and "secret" in told[0] and "inference.py" in told[0]


def test_code_may_choose_status_and_message(tmp_path: Path) -> None:
    code = """
class Own(Exception):
    status_code, message = 422, "too cold\\nTraceback"
def model_fn(d): return 1
def transform_fn(m, b, c, a): raise Own()
"""
    with pytest.raises(HandlerFailed, match="^too cold$") as failed:
        ask(load(written(tmp_path, code)), b"1")
    assert failed.value.status == 422


def test_code_that_ends_the_process_ends_its_request_only(tmp_path: Path) -> None:
    engine = load(written(tmp_path, "import sys\ndef model_fn(d): return 1\ndef transform_fn(m, b, c, a): sys.exit(3)"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(HandlerFailed):  # as beside the event loop
        pool.submit(ask, engine, b"1").result()
    with pytest.raises(ModelLoadError, match="SystemExit"):
        load(written(tmp_path, "exit()"))


def test_code_that_finds_no_memory_says_so(tmp_path: Path) -> None:
    code = "import torch\ndef model_fn(d): return 1\ndef transform_fn(m, b, c, a): torch.empty(10**15)"
    with pytest.raises(MemoryError):
        ask(load(written(tmp_path, code)), b"1")


def test_a_function_with_other_arguments_fails(tmp_path: Path) -> None:
    engine = load(written(tmp_path, "def model_fn(d): return 1\ndef transform_fn(m): return 1"))
    with pytest.raises(HandlerFailed):
        ask(engine, b"1")


@pytest.mark.parametrize("name", ["model.pt", "net.pth"])
def test_torchscript_alone_is_served_by_the_defaults(tmp_path: Path, name: str) -> None:
    engine = load(scripted(tmp_path, name))
    assert json.loads(ask(engine, b"[[1, 2], [3, 4.5]]").body) == [[1, 2], [3, 4.5]]
    assert ask(engine, b"1,2\n3,4\n", "text/csv", "text/csv").body == b"1.0,2.0\n3.0,4.0\n"
    stream = io.BytesIO()
    np.save(stream, np.array([[1, 2]], np.float64))
    answer = ask(engine, stream.getvalue(), "application/x-npy", "application/x-npy")
    array = np.load(io.BytesIO(answer.body), allow_pickle=False)
    assert (array.dtype, array.tolist(), answer.content_type) == (np.float64, [[1, 2]], "application/x-npy")
    assert ask(engine, b"[[1, 2]]", accept="text/html, text/csv;q=0.5").content_type == "text/csv"


def test_the_defaults_refuse_what_they_cannot_read(tmp_path: Path) -> None:
    engine = load(scripted(tmp_path))
    canary = tmp_path / "canary"
    stream = io.BytesIO()
    np.save(stream, np.array([canary], dtype=object), allow_pickle=True)
    for body, kind, error in [
        (b"[[1], [2, 3]]", "application/json", InvalidInput),
        (b'["a"]', "application/json", InvalidInput),
        (b"\xff", "application/json", InvalidInput),
        (b"[" * 1000, "application/json", InvalidInput),
        (b"1,\n", "text/csv", InvalidInput),
        (stream.getvalue(), "application/x-npy", InvalidInput),
        (pickle.dumps(1), "application/x-npy", InvalidInput),
        (b"1", "text/plain", UnsupportedMediaType),
        (b"1", "application/x-npz", UnsupportedMediaType),
    ]:
        with pytest.raises(error):
            ask(engine, body, kind)
    with pytest.raises(NotAcceptable):
        ask(engine, b"[[1, 2]]", accept="text/html")


def test_an_answer_that_is_no_table_is_json_only(tmp_path: Path) -> None:
    code = "import torch\ndef model_fn(d): return 1\ndef predict_fn(x, m): return {'a': torch.ones(1), 'b': (2, [x])}"
    engine = load(written(tmp_path, code))
    assert json.loads(ask(engine, b"[[1]]").body) == {"a": [1], "b": [2, [[[1]]]]}
    with pytest.raises(NotAcceptable):
        ask(engine, b"[[1]]", accept="text/csv")


def test_a_file_that_is_no_torchscript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"nothing")
    with pytest.raises(ModelLoadError, match="is not TorchScript"):
        load(tmp_path)


def test_packages_of_a_model_are_not_installed_but_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = written(tmp_path, "def model_fn(d): return 1")
    (folder / "code" / "requirements.txt").write_text("nothing-of-that-name\n")
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "requirements.txt" in caplog.text
