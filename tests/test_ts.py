"""What handlers import from `ts`: that it resolves, and that context, metrics and helpers do what they promise."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from servekit import ts
from servekit.ts.context import Context, RequestProcessor
from servekit.ts.handler_utils.micro_batching import MicroBatching
from servekit.ts.handler_utils.utils import import_class
from servekit.ts.metrics import sinks
from servekit.ts.metrics.dimension import Dimension
from servekit.ts.metrics.metric import Metric
from servekit.ts.metrics.metric_cache_errors import (
    MetricsCacheIOError,
    MetricsCacheKeyError,
    MetricsCachePyYamlError,
    MetricsCacheTypeError,
    MetricsCacheValueError,
)
from servekit.ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from servekit.ts.metrics.metric_type_enum import MetricTypes
from servekit.ts.metrics.metrics_store import MetricsStore
from servekit.ts.metrics.unit import Units
from servekit.ts.service import emit_metrics
from servekit.ts.utils.util import get_yaml_config, list_classes_from_module, load_label_mapping, map_class_to_label
from tests.handler_archives import ask, request, start, write

PUBLIC = """
    context handler_utils.micro_batching handler_utils.timer handler_utils.utils metrics.caching_metric metrics.dimension
    metrics.metric_type_enum metrics.metrics_store service torch_handler.base_handler torch_handler.image_classifier
    torch_handler.image_segmenter torch_handler.object_detector torch_handler.request_envelope.base
    torch_handler.request_envelope.body torch_handler.request_envelope.json torch_handler.request_envelope.kserve
    torch_handler.request_envelope.kservev2 torch_handler.text_classifier torch_handler.text_handler
    torch_handler.unit_tests.test_utils.mock_context torch_handler.vision_handler utils.util version
    handler_utils.hf_batch_streamer protocol.otf_message_handler
    """.split()
MODEL = {"ModelName": "m", "Level": "Model"}


@pytest.mark.parametrize("name", PUBLIC)
def test_ts_is_servekits_own_and_the_same_module(name: str) -> None:
    ts.install()
    ts.install()
    module = importlib.import_module(f"ts.{name}")
    assert module is importlib.import_module(f"servekit.ts.{name}") is sys.modules[f"ts.{name}"]
    assert module.__spec__ is not None and module.__spec__.name == module.__name__ == f"servekit.ts.{name}"


def test_what_ts_does_not_have_is_missing_under_its_own_name() -> None:
    ts.install()
    for name in ("ts.no_such", "ts.torch_handler.no_such"):
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{name}'"):
            importlib.import_module(name)


def run_python(text: str, cwd: Path) -> str:
    root = Path(ts.__file__).parent.parent.parent
    code = f"import sys; sys.path[:0] = [{str(cwd)!r}, {str(root)!r}]\n{text}"
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def test_a_torchserve_that_is_installed_is_left_alone(tmp_path: Path) -> None:
    look = "from servekit import ts; ts.install(); import ts.torch_handler as found; print(found.__name__)"
    (tmp_path / "ts").mkdir()  # a folder that happens to have the name
    assert run_python(look, tmp_path) == "servekit.ts.torch_handler"
    (tmp_path / "ts" / "torch_handler").mkdir()
    for folder in (tmp_path / "ts", tmp_path / "ts" / "torch_handler"):
        (folder / "__init__.py").touch()
    assert run_python(look, tmp_path) == "ts.torch_handler"


def test_heavy_packages_are_imported_when_they_are_needed(tmp_path: Path) -> None:
    text = "import servekit.engines.torchserve, servekit.ts.torch_handler.image_classifier, sys\n"
    assert run_python(text + "print({'torch', 'PIL', 'yaml', 'onnxruntime'} & set(sys.modules))", tmp_path) == "set()"


def test_headers_are_looked_up_in_any_case_and_kept_as_sent() -> None:
    processor = RequestProcessor({"Content-Type": "text/plain", "url_path": ""})
    assert processor.get_request_property("content-type") == "text/plain"
    assert (processor.get_request_property("URL_PATH"), processor.get_request_property("x")) == ("", None)
    assert processor.get_request_properties() == {"Content-Type": "text/plain", "url_path": ""}
    processor.add_response_property("X-A", "1")
    processor.add_response_property("x-a", "2")
    assert (processor.get_response_header("x-A"), processor.get_response_headers()) == ("2", {"X-A": "2"})
    headers = processor.get_response_headers()
    assert "X-a" in headers and 1 not in headers
    del headers["x-A"]
    assert headers == {} and headers.get("x-a", "none") == "none"
    headers.update({"X-B": "1"}, c="2")
    assert (headers["x-b"], headers.setdefault("C", "3"), headers.setdefault("d", "4")) == ("1", "2", "4")
    assert (headers.pop("x-B"), headers.pop("x-b", "gone"), list(headers)) == ("1", "gone", ["c", "d"])


def test_the_context_without_and_with_requests() -> None:
    context = Context("m", "/folder", {"model": {}}, 2, None, "0.12.0")
    assert context.get_request_id() is None
    context.set_response_status(500, "no requests yet")
    with pytest.raises(RuntimeError, match="before the first batch"):
        context.get_request_header(0, "x")
    context.request_processor = [RequestProcessor({"ts_request_sequence_id": "s"}), RequestProcessor({})]
    assert (context.get_sequence_id(0), context.get_sequence_id(1)) == ("s", None)
    context.set_all_response_status(418, "teapot")
    context.set_response_status(201, idx=1)
    assert [context.get_response_status(index) for index in (0, 1)] == [(418, "teapot"), (201, "")]
    context.set_response_content_type(1, "a/b")
    assert (context.get_response_content_type(0), context.get_response_content_type(1)) == (None, "a/b")


class Seen(list[tuple[Any, ...]]):
    """A sink that keeps what it is given."""

    def __call__(self, *value: Any) -> None:
        self.append(value)


def test_every_way_to_add_a_metric() -> None:
    seen = Seen()
    metrics = MetricsCacheYamlImpl(model_name="m", sink=seen)
    metrics.set_request_ids({0: "a", 1: "b"})
    extra = [Dimension("Color", "red")]
    metrics.add_counter("c", 2, 1, extra)
    metrics.add_time("t", 3)
    metrics.add_time("t2", 3, None, "s", None, MetricTypes.HISTOGRAM)
    metrics.add_size("s", 4, None, "kB")
    metrics.add_percent("p", 5)
    metrics.add_metric("m", 6, "apples", metric_type=MetricTypes.GAUGE)
    metrics.add_error("e", 1)
    metrics.add_counter("c", 1, dimensions=extra)
    assert seen == [
        ("c", "counter", 2, "Count", {"Color": "red", **MODEL}),
        ("t", "gauge", 3, "Milliseconds", MODEL),
        ("t2", "histogram", 3, "Seconds", MODEL),
        ("s", "gauge", 4, "Kilobytes", MODEL),
        ("p", "gauge", 5, "Percent", MODEL),
        ("m", "gauge", 6, "apples", MODEL),
        ("e", "counter", 1, "unit", {"Level": "Error"}),
        ("c", "counter", 1, "Count", {"Color": "red", **MODEL}),
    ]
    assert [str(each) for each in extra] == ["Color:red"] and extra[0].to_dict() == {"Name": "Color", "Value": "red"}


def test_metrics_with_dimensions_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    metrics = MetricsCacheYamlImpl(model_name="m", sink=seen)
    made = metrics.add_metric_to_cache("calls", "count", ["ModelName", "Way"])
    assert metrics.get_metric("calls") is made
    made.add_or_update(1, ["m", "left"])
    made.update(2, "id", [Dimension("Way", "right")])
    made.add_or_update(1, ["too", "many"])
    made.add_or_update(-1, ["left"])
    ways = [{"ModelName": "m", "Way": "left"}, {"Way": "right"}]
    assert seen == [("calls", "counter", value, "Count", way) for value, way in zip((1, 2), ways, strict=True)]
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_wrong_metrics_are_refused() -> None:
    metrics = MetricsCacheYamlImpl()
    for call in (lambda: metrics.add_time("t", 1, unit="years"), lambda: metrics.add_size("t", 1, unit="ms")):
        with pytest.raises(MetricsCacheValueError, match="The unit of a"):
            call()
    with pytest.raises(MetricsCacheKeyError):
        metrics.get_metric("none", MetricTypes.GAUGE)
    for arguments in ((1, "ms"), ("x", 1), ("x", "ms", "Level"), ("x", "ms", [], "counter")):
        with pytest.raises(MetricsCacheTypeError):
            metrics.add_metric_to_cache(*arguments)  # type: ignore[arg-type]


def test_metrics_listed_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.yaml"
    path.write_text("model_metrics: {gauge: [{name: Time, unit: ms, dimensions: [Level]}]}")
    metrics = MetricsCacheYamlImpl(str(path))
    metrics.initialize_cache()
    assert metrics.get_metric("Time", MetricTypes.GAUGE).dimension_names == ["Level"]
    for text, error in (("[", MetricsCachePyYamlError), ("other: 1", MetricsCacheKeyError)):
        path.write_text(text)
        with pytest.raises(error):
            metrics.initialize_cache()
    path.unlink()
    with pytest.raises(MetricsCacheIOError):
        metrics.initialize_cache()


def test_old_metrics_go_to_the_sink_of_the_model_that_runs() -> None:
    seen = Seen()
    with sinks.using(seen):
        metric = Metric("old", 1, "ms", [Dimension("Level", "Model")], "id")
        emit_metrics([metric])
        metric.update(5)
        metric.reset()
        MetricsStore({0: "id"}, "m").add_counter("new", 1, 0)
    MetricsStore("id", "m").add_counter("dropped", 1)
    level = {"Level": "Model"}
    assert seen[:3] == [("old", "counter", value, "Milliseconds", level) for value in (1, 5, 0)]
    assert seen[3:] == [("new", "counter", 1, "Count", MODEL)]
    assert str(metric).startswith("old.Milliseconds:0|#Level:Model|#hostname:") and str(metric).endswith(",id")
    assert metric.to_dict()["MetricName"] == "old"
    emit_metrics(None)
    assert Units().units["kB"] == "Kilobytes"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('{"0": "cat", "1": "dog"}', {"0": "cat", "1": "dog"}),
        ('{"0": ["n02123045", "tabby"]}', {"0": "tabby"}),
        ('{"object_type_names": ["cat", "dog"]}', {"0": "cat", "1": "dog"}),
    ],
)
def test_the_three_forms_of_index_to_name(tmp_path: Path, text: str, labels: dict[str, str]) -> None:
    (tmp_path / "index_to_name.json").write_text(text)
    assert load_label_mapping(tmp_path / "index_to_name.json") == labels


def test_labels(tmp_path: Path) -> None:
    assert load_label_mapping(str(tmp_path / "index_to_name.json")) is None
    for text in ("[]", '{"0": 5}', '{"0": []}'):
        (tmp_path / "index_to_name.json").write_text(text)
        with pytest.raises(ValueError, match="index_to_name.json must"):
            load_label_mapping(tmp_path / "index_to_name.json")
    assert map_class_to_label([[0.5, 0.25]], {"3": "cat"}, [[3, 9]]) == [{"cat": 0.5, "9": 0.25}]
    assert map_class_to_label([[1], [2]]) == [{"0": 1}, {"0": 2}]
    with pytest.raises(TypeError, match="must be a list"):
        map_class_to_label("ab")


def test_small_helpers(tmp_path: Path) -> None:
    assert import_class("context.Context", "servekit.ts") is import_class("servekit.ts.context.Context") is Context
    for name in ("servekit.ts.context.Nothing", "Context", ""):
        with pytest.raises(ImportError, match="There is no class"):
            import_class(name)
    (tmp_path / "x.yaml").write_text("a: 1")
    assert get_yaml_config(tmp_path / "x.yaml") == {"a": 1}
    assert list_classes_from_module(sys.modules[Context.__module__], RequestProcessor) == [RequestProcessor]


def test_texts_are_streamed_by_the_package_that_the_archive_brings(tmp_path: Path) -> None:
    streamers = """
        class TextIteratorStreamer:
            def __init__(self, tokenizer, skip_prompt, timeout, **options):
                self.tokenizer, self.pieces = tokenizer, []

            def put(self, value):
                self.pieces.append(self.tokenizer(value))

            def end(self):
                self.pieces.append(None)

            def __iter__(self):
                return iter(lambda: self.pieces.pop(0), None)
        """
    handler = """
        import pytest
        from ts.handler_utils.hf_batch_streamer import TextIteratorStreamerBatch

        def handle(data, context):
            if data is None:
                return
            streamer = TextIteratorStreamerBatch(lambda value: value[0], len(data))
            streamer.put(["a", "b"])
            streamer.put(["c", "d"])
            streamer.end()
            with pytest.raises(ValueError, match="made for 2 rows and was given 1"):
                streamer.put(["e"])
            return [list(streamer)] * 2
        """
    write(tmp_path / "transformers" / "generation", streamers=streamers, __init__="")
    write(tmp_path / "transformers", __init__="")
    answer = json.loads(ask(start(write(tmp_path, handler=handler)), request(), request())[0].body)
    assert answer == [[{"text": "a"}, {"text": "b"}], [{"text": "c"}, {"text": "d"}]]


class Steps:
    """A handler whose steps say what they were given."""

    def __init__(self, fail: bool = False) -> None:
        self.fail = fail
        self.indices: list[Any] = []

    def preprocess(self, data: Any) -> Any:
        time.sleep(0.001)
        return [row + "p" for row in data]

    def inference(self, data: Any) -> Any:
        if self.fail:
            raise ValueError("no")
        return [row + "i" for row in data]

    def postprocess(self, data: Any) -> Any:
        self.indices.append((self.batching.get_micro_batch_idx(), len(data)))
        return [row + "o" for row in data]


def test_micro_batches_keep_their_order_and_errors_come_through() -> None:
    handler = Steps()
    handler.batching = batching = MicroBatching(handler, 2, {"preprocess": 3})
    assert batching.parallelism == {"preprocess": 3, "inference": 1, "postprocess": 1}
    assert batching.handle(list("abcde")) == [f"{row}pio" for row in "abcde"]
    assert handler.indices == [(0, 2), (1, 2), (2, 1)]
    batching.parallelism = {"inference": 2}
    assert batching.handle(["x"]) == ["xpio"] and batching.get_micro_batch_idx() is None
    with pytest.raises(ValueError, match="The steps whose threads can be set are preprocess"):
        batching.parallelism = {"other": 1}
    handler.fail = True
    with pytest.raises(ValueError, match="^no$"):
        batching.handle(["x"])
    batching.shutdown()


def test_a_handler_of_micro_batches(tmp_path: Path) -> None:
    handler = """
        from ts.handler_utils.micro_batching import MicroBatching
        from ts.torch_handler.base_handler import BaseHandler

        class Mine(BaseHandler):
            def initialize(self, context):
                self.handle = MicroBatching(self, micro_batch_size=2)

            def preprocess(self, data):
                return data

            def inference(self, data):
                import helper
                return [helper.NAME] * len(data)

            def postprocess(self, data):
                return data

            def describe_handle(self):
                return "me"

            def get_insights(self, *arguments):
                return ["why"]
        """
    engine = start(write(tmp_path, handler=handler, helper="NAME = 'x'"))
    assert [answer.body for answer in ask(engine, *[request()] * 5)] == [b"x"] * 5
    assert ask(engine, request(headers={"describe": "True"}))[0].body == b"me"
    assert ask(engine, request(headers={"explain": "True"}))[0].body == b"why"
