from pathlib import Path

import pytest

from servekit.errors import SettingError
from servekit.torchserve.catalogue import read_catalogue


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.system ['touch broken']", "is not YAML"),
        ("- a", "no mapping with ts_metrics"),
        ("", "no mapping with ts_metrics"),
        ("ts_metrics: [a]", "ts_metrics is no mapping"),
        ("model_metrics: {summary: []}", "none of counter, gauge and histogram"),
        ("model_metrics: {gauge: {a: 1}}", "gauge in model_metrics is no list"),
        ("model_metrics: {gauge: [{unit: ms}]}", "None is no name"),
        ("model_metrics: {gauge: [HandlerTime]}", "None is no name"),
        ("model_metrics: {gauge: [{name: a-b}]}", "'a-b' is no name"),
        ("model_metrics: {gauge: [{name: a, dimensions: b}]}", "dimensions of a"),
        ("model_metrics: {gauge: [{name: a, dimensions: ['b-c']}]}", "dimensions of a"),
        ("model_metrics: {gauge: [{name: a, dimensions: [b, b]}]}", "a dimension of a is there twice"),
        ("model_metrics: {gauge: [{name: a}], counter: [{name: a}]}", "a is there twice"),
        ("model_metrics: {gauge: [{name: a}]}\nts_metrics: {gauge: [{name: a}]}", "both"),
        ("ts_metrics: {gauge: [{name: Requests2XX, dimensions: [a, b]}]}", "Requests2XX is a counter"),
        ("ts_metrics: {counter: [{name: Requests2XX}]}", "Requests2XX has 2 dimensions: Level, Hostname"),
    ],
)
def test_a_metrics_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "metrics.yaml"
    file.write_text(content)
    with pytest.raises(SettingError) as caught:
        read_catalogue(file)
    assert reason in str(caught.value) and "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_a_metrics_file_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingError, match="metrics_config=/nowhere/metrics.yaml cannot be read: No such file"):
        read_catalogue(Path("/nowhere/metrics.yaml"))
