"""Handlers of archives, run as TorchServe runs them: entry points, data, answers, and every way to fail."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from servekit.engines.torchserve import HandlerRequest, HandlerResponse, Parameter, TorchServeEngine
from servekit.errors import HandlerFailed, ModelLoadError
from tests.handler_archives import LINEAR, ask, request, start, write

ROOT = Path(__file__).parent.parent
ECHO = """
    def handle(data, context):
        if data is None:
            return None
        return [repr(sorted(row.items())) for row in data]
    """
ANSWER = """
    calls = []

    def {name}(data, context):
        calls.append(data)
        return ["{name}"] * len(data) if data is not None else None
    """
CLASS = """
    class {name}:
        def initialize(self, context):
            self.folder = context.system_properties["model_dir"]

        def handle(self, data, context):
            return ["{name}"] * len(data)
    """


def text_of(response: HandlerResponse) -> str:
    return response.body.decode()


@pytest.mark.parametrize("handler", ["handler", "handler.py", "handler:handle", "some/folder/handler.py:handle"])
def test_a_function_is_called_once_without_data_and_then_for_each_batch(tmp_path: Path, handler: str) -> None:
    engine = start(write(tmp_path, handler=ANSWER.format(name="handle") + "\n    class Other:\n        pass"), handler)
    assert [text_of(answer) for answer in ask(engine, request(), request())] == ["handle", "handle"]
    calls = engine._entry.handle.__globals__["calls"]
    assert [call if call is None else len(call) for call in calls] == [None, 2]


def test_a_function_of_another_name_and_modules_in_folders(tmp_path: Path) -> None:
    write(tmp_path / "pkg", service=ANSWER.format(name="go"), __init__="")
    assert text_of(ask(start(tmp_path, "pkg/service.py:go"), request())[0]) == "go"
    write(tmp_path, service=ANSWER.format(name="serve"))
    assert text_of(ask(start(tmp_path, "service:serve"), request())[0]) == "serve"


def test_a_class_is_initialised_and_a_function_goes_before_it(tmp_path: Path) -> None:
    one = CLASS.format(name="One")
    assert text_of(ask(start(write(tmp_path / "a", handler=one)), request())[0]) == "One"
    both = one + ANSWER.format(name="handle")
    assert text_of(ask(start(write(tmp_path / "b", handler=both)), request())[0]) == "handle"
    helper = one + "\n    class Helper:\n        pass"
    assert text_of(ask(start(write(tmp_path / "c", handler=helper)), request())[0]) == "One"


def test_two_classes_or_none_are_refused_with_the_contracts_sentence(tmp_path: Path) -> None:
    two = CLASS.format(name="One") + CLASS.format(name="Two")
    for name, text in (("two", two), ("none", "VALUE = 1")):
        with pytest.raises(ModelLoadError, match="ValueError: Expected only one class in custom service code or a function"):
            start(write(tmp_path / name, handler=text))


def test_data_are_decoded_by_their_content_types(tmp_path: Path) -> None:
    engine = start(write(tmp_path, handler=ECHO))
    cases = [
        (b'{"a": [1]}', "application/json", "{'a': [1]}"),
        (b'{"a": [1]}', "application/json; charset=utf-8", "{'a': [1]}"),
        (b"no json", "application/json", "bytearray(b'no json')"),
        (b"5.0", "text/plain", "'5.0'"),
        ("ä".encode("latin-1"), "text/plain", "bytearray(b'\\xe4')"),
        (b"5.0", "image/png", "bytearray(b'5.0')"),
        (b"5.0", None, "bytearray(b'5.0')"),
        (b"", None, "bytearray(b'')"),
    ]
    answers = ask(engine, *(request(value, content_type) for value, content_type, _ in cases))
    assert [text_of(answer) for answer in answers] == [f"[('body', {expected})]" for *_, expected in cases]


def test_forms_have_a_value_a_field_and_of_two_alike_the_last(tmp_path: Path) -> None:
    fields = [Parameter("data", "text/plain", b"x"), Parameter("n", None, b"1"), Parameter("n", None, b"2")]
    engine = start(write(tmp_path, handler=ECHO))
    answers = ask(engine, HandlerRequest("1", {}, fields), HandlerRequest("2", {}, []))
    assert text_of(answers[0]) == "[('data', 'x'), ('n', bytearray(b'2'))]"
    assert text_of(answers[1]) == "[]"


def test_decoding_can_be_off(tmp_path: Path) -> None:
    engine = start(write(tmp_path, handler=ECHO), decode_input=False)
    assert text_of(ask(engine, request(b"1", "application/json"))[0]) == "[('body', bytearray(b'1'))]"


def test_the_context_tells_of_model_and_requests(tmp_path: Path) -> None:
    handler = """
        import ts
        from ts.context import Context

        def handle(data, context):
            if data is None:
                return
            return [{
                "kind": isinstance(context, Context),
                "name": context.model_name, "properties": context.system_properties, "manifest": context.manifest,
                "config": context.model_yaml_config, "id": context.get_request_id(i), "all": context.request_ids[i],
                "type": context.get_request_header(i, "CONTENT-TYPE"), "part": context.get_request_header(i, "body"),
                "url_path": context.get_request_header(i, "url_path"), "none": context.get_request_header(i, "x"),
                "headers": dict(context.get_all_request_header(i)),
            } for i in range(len(data))]
        """
    engine = start(write(tmp_path, handler=handler), batch_size=4, model_config={"handler": {"x": 1}})
    headers = {"Content-Type": "text/plain", "url_path": "a/b", "Authorization": "Bearer k"}
    first, second = ask(engine, request(b"1", "text/plain", headers=headers, id="one"), request(id="two"))
    told = json.loads(first.body)
    assert told["properties"] == {
        "model_dir": str(tmp_path.resolve()),
        "gpu_id": None,
        "batch_size": 4,
        "server_name": "MMS",
        "server_version": "0.12.0",
        "limit_max_image_pixels": True,
    }
    assert (told["name"], told["manifest"]["model"]["handler"], told["config"]) == ("m", "handler", {"handler": {"x": 1}})
    assert (told["id"], told["all"], told["type"], told["url_path"], told["none"]) == ("one", "one", "text/plain", "a/b", None)
    assert told["part"] == {"content-type": "text/plain"} and told["headers"]["Authorization"] == "Bearer k"
    assert told["kind"] and json.loads(second.body)["id"] == "two"


@pytest.mark.parametrize(
    ("item", "body", "content_type"),
    [
        ("'text é'", "text é".encode(), "text/plain; charset=utf-8"),
        ("b'raw'", b"raw", "application/octet-stream"),
        ("bytearray(b'raw')", b"raw", "application/octet-stream"),
        ("{'a': 1}", b'{\n  "a": 1\n}', "application/json"),
        ("[[1, 2.5]]", json.dumps([[1, 2.5]], indent=2).encode(), "application/json"),
        ("9.0", b"9.0", "application/json"),
        ("None", b"null", "application/json"),
    ],
)
def test_answers_are_written_by_their_types(tmp_path: Path, item: str, body: bytes, content_type: str) -> None:
    engine = start(write(tmp_path, handler=f"def handle(data, context):\n    return [{item}]"))
    (answer,) = ask(engine, request())
    assert (answer.body, answer.content_type) == (body, content_type)
    assert (answer.status, answer.reason, list(answer.headers)) == (200, "", [])


def test_a_tensor_is_answered_as_torch_saves_it(tmp_path: Path) -> None:
    engine = start(write(tmp_path, handler="import torch\ndef handle(data, context):\n    return [torch.ones(2)]"))
    (answer,) = ask(engine, request())
    (tmp_path / "x.pt").write_bytes(answer.body)
    assert torch.load(tmp_path / "x.pt").tolist() == [1, 1] and answer.content_type == "application/octet-stream"


def test_the_handler_sets_status_and_header_of_each_answer(tmp_path: Path) -> None:
    handler = """
        def handle(data, context):
            if data is not None:
                context.set_response_content_type(0, "image/png")
                context.set_response_header(0, "dummy", 1)
                context.set_response_status(507, "full", 1)
                context.set_response_header(1, "Content-Type", "text/html")
                return [b"x", "Invalid response"]
        """
    first, second = ask(start(write(tmp_path, handler=handler)), request(), request())
    assert (first.status, first.content_type, list(first.headers)) == (200, "image/png", [("dummy", "1")])
    assert (second.status, second.reason, second.content_type, list(second.headers)) == (507, "full", "text/html", [])
    assert text_of(second) == "Invalid response"


FAILURES = {
    "raise KeyError('x')": (503, "Prediction failed", "KeyError: 'x'"),
    "raise MemoryError()": (507, "Out of resources", "MemoryError"),
    "raise RuntimeError('CUDA out of memory')": (507, "Out of resources", "CUDA out of memory"),
    "raise PredictionException('Send a dog.', 599)": (599, "Send a dog.", "PredictionException: Send a dog. : 599"),
    "raise PredictionException('Send a cat.')": (500, "Send a cat.", "Send a cat."),
    "raise PredictionException('Odd.', 'x')": (500, "Odd.", "Odd."),
    "return {'a': 1}": (503, "Invalid model predict output", "returned dict"),
    "return data + data": (503, "number of batch response mismatched", "2 answers to a batch of 1"),
    "return []": (503, "number of batch response mismatched", "0 answers to a batch of 1"),
    "return [object()]": (503, "Unsupported model output data type.", "number 0 cannot be written"),
    "a = []; a.append(a); return [a]": (503, "Unsupported model output data type.", "Circular"),
    "context.set_response_header(0, 'a', 'b\\r\\nc: d'); return ['']": (503, "Prediction failed", "more than one line"),
    "context.set_response_status(99999); return ['']": (503, "Prediction failed", "99999"),
}


@pytest.mark.parametrize("line", FAILURES)
def test_every_failure_has_the_contracts_status_and_message(tmp_path: Path, line: str) -> None:
    status, message, reason = FAILURES[line]
    told: list[str] = []
    text = f"from ts.utils.util import PredictionException\ndef handle(data, context):\n    if data is None: return\n    {line}"
    engine = start(write(tmp_path, handler=text), on_failure=told.append)
    with pytest.raises(HandlerFailed) as caught:
        ask(engine, request())
    assert (caught.value.status, str(caught.value)) == (status, message)
    assert len(told) == 1 and reason in told[0]


def test_the_traceback_begins_at_the_handlers_own_line(tmp_path: Path) -> None:
    told: list[str] = []
    handler = """
        from ts.torch_handler.base_handler import BaseHandler

        class Mine(BaseHandler):
            def initialize(self, context):
                pass

            def preprocess(self, data):
                import helper
                return helper.go(data)
        """
    engine = start(write(tmp_path, handler=handler, helper="def go(data):\n    return 1 / 0"), on_failure=told.append)
    with pytest.raises(HandlerFailed):
        ask(engine, request())
    lines = told[0].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == f'  File "{tmp_path}/handler.py", line 10, in preprocess'
    assert lines[-1] == "ZeroDivisionError: division by zero" and "return 1 / 0" in told[0]


def test_what_is_told_of_a_failure_is_in_the_log_and_not_longer_than_people_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    text = "def handle(data, context):\n    if data is not None: raise ValueError(data[0]['body'].decode() + ' is no number')"
    engine = start(write(tmp_path, handler=text), on_failure=told.append)
    with pytest.raises(HandlerFailed):
        ask(engine, request(b"x" * 10**6))
    assert "handler.py" in told[0] and told[0].endswith("xxx is no number\n") and len(told[0]) < 21_000
    assert len(caplog.text) < 25_000


def test_the_log_says_why_a_handler_failed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "def handle(data, context):\n    if data is not None: raise ValueError('no\\n2026-01-01 forged \\x1b[31m')"
    engine = start(write(tmp_path, handler=text))
    with pytest.raises(HandlerFailed):
        ask(engine, request(id="one"), request(id="two"))
    assert not caplog.records  # each is tried alone next
    with pytest.raises(HandlerFailed):
        ask(engine, request(id="two"))
    (record,) = caplog.records
    lines = record.getMessage().split("\n")
    assert (record.levelname, lines[0]) == ("ERROR", "The handler of m failed, request two:")
    assert lines[1:3] == ["  Traceback (most recent call last):", f'    File "{tmp_path}/handler.py", line 2, in handle']
    assert lines[-2:] == ["  ValueError: no", "  2026-01-01 forged \\x1b[31m"]


def test_a_handler_that_ends_the_process_fails_its_batch_only(tmp_path: Path) -> None:
    for call in ("sys.exit(3)", "exit()"):
        text = f"import sys\ndef handle(data, context):\n    if data is not None: {call}"
        engine = start(write(tmp_path / call, handler=text))
        with ThreadPoolExecutor(1) as pool, pytest.raises(HandlerFailed, match="^Worker died.$"):
            pool.submit(ask, engine, request()).result()
        with pytest.raises(HandlerFailed, match="^Worker died.$"):
            ask(engine, request())
    with pytest.raises(ModelLoadError, match=r"SystemExit: gone \(handler.py:1\)"):
        start(write(tmp_path / "load", handler="raise SystemExit('gone')"))


ENDS = "KeyboardInterrupt", "GeneratorExit", "asyncio.CancelledError", "type('E', (BaseException,), {})"


@pytest.mark.parametrize("error", ENDS)
def test_no_error_of_a_handler_is_taken_for_the_end_of_the_worker(tmp_path: Path, error: str) -> None:
    text = f"import asyncio\ndef handle(data, context):\n    if data is not None: raise {error}()"
    told: list[str] = []
    engine = start(write(tmp_path / "predict", handler=text), on_failure=told.append)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C means nothing to a worker of Gunicorn, either
    try:
        with pytest.raises(HandlerFailed, match="^Worker died.$"):
            ask(engine, request())
        with pytest.raises(ModelLoadError, match=r"\(handler.py:2\)"):
            start(write(tmp_path / "load", handler=f"import asyncio\nraise {error}()"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert "line 3, in handle" in told[0]


def test_ctrl_c_is_not_a_failure_of_the_handler(tmp_path: Path) -> None:
    text = "import signal\ndef handle(data, context):\n    if data is not None: signal.raise_signal(signal.SIGINT)"
    engine = start(write(tmp_path, handler=text))
    with pytest.raises(KeyboardInterrupt):
        ask(engine, request())


def test_a_signal_ends_the_process_while_a_handler_runs(tmp_path: Path) -> None:
    def leave(number: int, frame: Any) -> None:
        raise SystemExit(0)  # as Gunicorn's handler of SIGABRT does

    text = "import signal\ndef handle(data, context):\n    if data is not None: signal.raise_signal(signal.SIGUSR1)"
    engine = start(write(tmp_path, handler=text))
    before = signal.signal(signal.SIGUSR1, leave)
    try:
        with pytest.raises(SystemExit):
            ask(engine, request())
    finally:
        signal.signal(signal.SIGUSR1, before)


BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "a name": ({"handler": "x = 1\nprint(undefined)"}, r"NameError: name 'undefined' is not defined \(handler.py:2\)"),
    "syntax": ({"handler": "x = 1\n\ndef ("}, r"SyntaxError: .* \(handler.py:3\)"),
    "a package": ({"handler": "import torchvision_x"}, r"No module named 'torchvision_x' \(handler.py:1\)"),
    "a helper": ({"handler": "import helper", "helper": "\n\n1 / 0"}, r"ZeroDivisionError: .* \(helper.py:3\)"),
    "initialize": ({"handler": "def handle(data, context):\n    raise OSError('gone')"}, r"OSError: gone \(handler.py:2\)"),
    "no module": ({}, "the archive has no module handler, and the handlers built in are base_handler, image_class"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_archive_that_cannot_be_loaded_names_error_and_line(tmp_path: Path, case: str) -> None:
    files, reason = BROKEN[case]
    before = set(sys.modules)
    with pytest.raises(ModelLoadError, match=f"^The model m cannot be loaded: .*{reason}.*\\.$") as caught:
        start(write(tmp_path, **files))
    assert caught.value.__cause__ is not None and "\n" not in str(caught.value)
    assert not [name for name in set(sys.modules) - before if name.startswith("_servekit")]


def test_handlers_that_are_not_here_say_what_they_need(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="vllm_handler needs the package vllm"):
        start(tmp_path, "vllm_handler")
    with pytest.raises(ModelLoadError, match="the archive names no handler"):
        start(tmp_path, "")
    with pytest.raises(ModelLoadError, match="no service envelope 'seldon'; there are body, json"):
        start(write(tmp_path, handler=ECHO), service_envelope="seldon")


def test_an_archive_without_a_manifest_is_described_by_the_options(tmp_path: Path) -> None:
    text = "def handle(data, context):\n    return data and [context.manifest]"
    folder = write(tmp_path, handler=text)
    for manifest in (None, {"model": {"modelName": None}}):
        options = {"model_name": "x", "model_version": "2.0", "handler": "handler", "manifest": manifest}
        (answer,) = ask(TorchServeEngine(folder, options), request())
        assert json.loads(answer.body) == {"model": {"modelName": "x", "modelVersion": "2.0"}}


def test_a_server_of_trusted_models_runs_no_code_of_an_archive(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    write(tmp_path, handler=f"import pathlib\npathlib.Path({str(marker)!r}).touch()", model=LINEAR)
    for handler, model in (("handler", {}), ("base_handler", {"modelFile": "model.py"})):
        with pytest.raises(ModelLoadError, match="PermissionError: .* this server refuses"):
            start(tmp_path, handler, model, trusted_only=True)
    (tmp_path / "model.pt").touch()
    with pytest.raises(ModelLoadError, match="model.pt can run code of its own, which this server refuses"):
        start(tmp_path, "base_handler", {"serializedFile": "model.pt"}, trusted_only=True)
    write(tmp_path, innocent=f"import pathlib\npathlib.Path({str(marker)!r}).touch()")
    (tmp_path / "innocent.onnx").touch()
    with pytest.raises(ModelLoadError, match="innocent.onnx can run code of its own"):
        start(tmp_path, "base_handler", {"modelFile": "innocent.onnx"}, trusted_only=True)
    assert not marker.exists()


def test_the_packages_of_a_server_of_trusted_models_are_its_own(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()"
    write(tmp_path / "model", onnxruntime=code, torch=code, PIL=code)
    (tmp_path / "model" / "model.onnx").touch()
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.handler_archives import start\n"
        "start(Path(sys.argv[1]), 'image_classifier', {'serializedFile': 'model.onnx'}, trusted_only=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "model")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "ModelLoadError" in done.stderr and "onnx" in done.stderr.lower()
    assert not marker.exists()


def test_parts_of_an_answer_are_sent_before_the_rest(tmp_path: Path) -> None:
    handler = """
        from ts.handler_utils.utils import send_intermediate_predict_response as send

        def handle(data, context):
            if data is not None:
                for _ in range(2):
                    send(["hello "] * len(data), context.request_ids, "Intermediate Prediction success", 200, context)
                return ["world "] * len(data)
        """
    sent: list[bytes] = []
    first, second = ask(start(write(tmp_path, handler=handler)), request(send=sent.append), request())
    assert (sent, first.body, second.body) == ([b"hello "] * 2, b"world ", b"hello hello world ")


def test_metrics_go_to_the_sink(tmp_path: Path) -> None:
    handler = """
        def handle(data, context):
            context.metrics.add_counter("Seen", 0 if data is None else len(data))
            return data and [""] * len(data)
        """
    seen: list[tuple[Any, ...]] = []
    ask(start(write(tmp_path, handler=handler), sink=lambda *value: seen.append(value)), request(), request())
    dimensions = {"ModelName": "m", "Level": "Model"}
    first, load, second, (name, kind, value, *rest) = seen
    assert [first, second] == [("Seen", "counter", value, "Count", dimensions) for value in (0, 2)]
    assert (*load[:2], *load[3:]) == ("WorkerLoadTime", "gauge", "Milliseconds", {"WorkerName": "W-9000-m_1.0"})
    assert (name, kind, rest) == ("PredictionTime", "gauge", ["Milliseconds", dimensions]) and 0 <= value < 1000


WHERE = """
    import os
    from pathlib import Path

    def handle(data, context):
        words = Path("words.txt")
        return data and [{"here": os.getcwd(), "text": words.read_text() if words.exists() else ""}]
    """


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has working directories of threads")
def test_a_thread_works_in_the_archives_folder_while_the_handler_runs(tmp_path: Path) -> None:
    engines = {name: start(write(tmp_path / name, handler=WHERE)) for name in "ab"}
    for name in engines:
        (tmp_path / name / "words.txt").write_text(name)
    before = os.getcwd()

    def ask_and_look(name: str) -> tuple[Any, str]:
        return json.loads(ask(engines[name], request())[0].body), os.getcwd()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask_and_look, "abab" * 10))
    for name, (told, after) in zip("abab" * 10, answers, strict=True):
        assert told == {"here": str((tmp_path / name).resolve()), "text": name} and after == before
    assert json.loads(ask(engines["a"], request())[0].body)["here"] == before == os.getcwd()  # the main thread's


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has working directories of threads")
def test_a_working_directory_that_is_gone_does_not_matter(tmp_path: Path) -> None:
    code = f"""
        import concurrent.futures, os, pathlib, sys
        os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
        from tests.handler_archives import ask, request, start
        engine = start(pathlib.Path({str(write(tmp_path, handler=WHERE))!r}))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            print(pool.submit(ask, engine, request()).result()[0].body.decode())
        """
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["here"] == str(tmp_path.resolve())


def test_a_request_that_a_version_has_when_its_archive_is_removed_is_answered(tmp_path: Path) -> None:
    engine = start(write(tmp_path / "model", handler="def handle(data, context):\n    return ['done']"))
    shutil.rmtree(tmp_path / "model")
    with ThreadPoolExecutor(1) as pool:
        assert text_of(pool.submit(ask, engine, request()).result()[0]) == "done"


def test_required_packages_are_imported(tmp_path: Path) -> None:
    text = "import _required_z\ndef handle(data, context):\n    return data and [_required_z.NAME]"
    write(tmp_path / "packages", _required_z="NAME = 'z'")
    engine = start(write(tmp_path / "model", handler=text), requirements=str(tmp_path / "packages"))
    assert text_of(ask(engine, request())[0]) == "z"


def test_many_threads_get_each_its_own_answers(tmp_path: Path) -> None:
    handler = """
        import time

        class Slow:
            def initialize(self, context):
                pass

            def handle(self, data, context):
                self.data = [row["body"] for row in data]
                time.sleep(0.001)
                return [f"{text} {context.get_request_id(i)}" for i, text in enumerate(self.data)]
        """
    engine = start(write(tmp_path, handler=handler))

    def go(number: int) -> Sequence[str]:
        return [text_of(answer) for answer in ask(engine, *(request(b"%d" % number, "text/plain", id=str(number)),) * 3)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(go, range(80))) == [[f"{number} {number}"] * 3 for number in range(80)]


def test_engines_come_and_go_while_others_answer(tmp_path: Path) -> None:
    text = """
        import importlib
        import model

        def handle(data, context):
            from model import NAME
            return data and [model.NAME + NAME + importlib.import_module("model").NAME] * len(data)
        """
    folders = {name: write(tmp_path / name, handler=text, model=f"NAME = '{name}'") for name in "abc"}
    engines = {name: start(folders[name]) for name in "ab"}
    wrong: list[str] = []
    done = threading.Event()

    def go(name: str) -> int:
        count = 0
        while not done.is_set() and not wrong:
            wrong.extend(text_of(answer) for answer in ask(engines[name], request()) if answer.body != name.encode() * 3)
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        counts = [pool.submit(go, name) for name in "abab"]
        for _ in range(5):
            passing = start(folders["c"])
            wrong.extend(text_of(answer) for answer in ask(passing, request()) if answer.body != b"ccc")
            del passing
            gc.collect()
        done.set()
    assert not wrong and all(count.result() > 0 for count in counts)
    assert "model" not in sys.modules


def test_an_engine_that_nobody_holds_leaves_no_modules(tmp_path: Path) -> None:
    engine = start(write(tmp_path, handler="import helper\n" + dedent(ECHO), helper="class Big:\n    pass"))
    prefix = engine._modules.name
    held = weakref.ref(sys.modules[f"{prefix}.helper"].Big)
    del engine
    gc.collect()
    assert held() is None
    assert not [name for name in sys.modules if name.startswith(prefix)]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before
