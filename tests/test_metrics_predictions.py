"""What is counted of predictions, by what became of them, and noted of a request."""

import logging
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client import REGISTRY

from servekit import metrics
from servekit.batcher import Backlog
from servekit.engines.echo import EchoEngine
from servekit.errors import HandlerFailed, InvalidInput, Overloaded
from servekit.handlers.base import Handler
from servekit.model import Model
from servekit.record import Record, record
from servekit.tensors import Tensors
from tests.test_model import PickyHandler, soon
from tests.test_spec import SPEC

Engine = Callable[[Tensors], Tensors]


def counted(model: Model, name: str, **labels: str) -> float:
    """Return a sample of servekit's of `model`."""
    labels = {"model": model.name, "version": model.version, **labels}
    return REGISTRY.get_sample_value(f"servekit_{name}", labels) or 0.0


def outcomes(model: Model) -> dict[str, float]:
    """Return the predictions of `model` by outcome, without those of which there are none."""
    found = {each: counted(model, "predictions_total", outcome=each) for each in ("ok", "invalid", "shed", "late", "failed")}
    return {outcome: count for outcome, count in found.items() if count}


def made(name: str, engine: Engine | None = None, handler: Handler | None = None, most: int = 100) -> Model:
    """Return a model whose numbers nobody else counts."""
    return Model(name, "1", SPEC, handler or PickyHandler(), engine or EchoEngine(), Backlog(most))


class Raises:
    """An engine whose passes raise."""

    device = "cpu"

    def __init__(self, error: Exception, rows: int = 1) -> None:
        self.error, self.rows = error, rows

    def __call__(self, tensors: Tensors) -> Tensors:
        if len(tensors["x"]) >= self.rows:
            raise self.error
        return tensors


def row(*values: int) -> Tensors:
    return {"x": np.array(values)}


def test_every_outcome_is_counted_once() -> None:
    model = made("outcomes")
    model.predict(row(1, 2), soon())
    with pytest.raises(InvalidInput):
        model.predict(row(-1), soon())
    with pytest.raises(Exception, match="too busy"):
        model.predict(row(1), time.monotonic() - 1)
    assert outcomes(model) == {"ok": 1, "invalid": 1, "late": 1}
    assert counted(model, "deadline_misses_total") == 1
    assert counted(model, "rows_total") == 2
    for step in ("prediction", "preprocess", "postprocess", "inference", "queue"):
        assert counted(model, f"{step}_duration_seconds_count") == 1, step
    assert counted(model, "handler_errors_total") == 0


def test_each_of_several_that_come_together_is_counted() -> None:
    model = made("together")
    model.predict_each([row(1), row(-1), row(2, 3), row(100)], soon())
    assert outcomes(model) == {"ok": 2, "invalid": 2}
    assert counted(model, "prediction_duration_seconds_count") == 1


def test_what_is_refused_is_counted_as_shed() -> None:
    begun, end = threading.Event(), threading.Event()

    class Waits(EchoEngine):
        def __call__(self, tensors: Tensors) -> Tensors:
            begun.set()
            end.wait(10)
            return tensors

    model = made("shed", Waits(), most=1)
    thread = threading.Thread(target=model.predict, args=(row(1), soon()))
    thread.start()
    assert begun.wait(10)
    assert REGISTRY.get_sample_value("servekit_rows_waiting") == 1
    with pytest.raises(Overloaded):
        model.predict(row(1), soon())
    end.set()
    thread.join()
    assert outcomes(model) == {"ok": 1, "shed": 1}
    assert REGISTRY.get_sample_value("servekit_rows_waiting") == 0


@pytest.mark.parametrize(
    ("error", "outcome", "errors"),
    [
        (ValueError("oh"), "failed", 1),
        (HandlerFailed("no"), "failed", 1),
        (HandlerFailed("yours", 404), "invalid", 0),
        (MemoryError(), "failed", 0),
    ],
)
def test_errors_of_a_models_own_code_are_counted(error: Exception, outcome: str, errors: int) -> None:
    model = made(f"raises {error!r}", Raises(error))
    with pytest.raises(type(error)):
        model.predict(row(1), soon())
    assert outcomes(model) == {outcome: 1}
    assert counted(model, "handler_errors_total") == errors


def test_an_error_of_a_shared_pass_that_goes_away_singly_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    from servekit.batcher import Job, run_pass

    model = made("shared", Raises(ValueError("only together"), rows=2))
    jobs = [Job(model._batcher, row(value), 1, soon()) for value in (1, 2)]
    run_pass(jobs)
    assert [job.error for job in jobs] == [None, None]
    (line,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "shared/1" in line.getMessage() and line.exc_info and "only together" in str(line.exc_info[1])
    assert counted(model, "handler_errors_total") == 1


def test_a_record_says_which_model_how_many_rows_and_how_long() -> None:
    class Slow(EchoEngine):
        def __call__(self, tensors: Tensors) -> Tensors:
            time.sleep(0.02)
            return tensors

    current = Record()
    token = record.set(current)
    try:
        made("recorded", Slow()).predict(row(1, 2, 3), soon())
        assert (current.model, current.version, current.rows, current.batch_rows) == ("recorded", "1", 3, 3)
        assert current.inference_seconds >= 0.02 and current.queue_seconds >= 0
        assert current.preprocess_seconds > 0 and current.postprocess_seconds > 0 and current.error == ""
        with pytest.raises(ValueError, match="oh"):
            made("broken", Raises(ValueError("oh"))).predict(row(1), soon())
        assert (current.model, current.error) == ("broken", "ValueError")
    finally:
        record.reset(token)


def test_what_a_version_is_made_of_is_told_while_it_is_held() -> None:
    model = made("known")
    labels = {"engine": "echo", "device": "cpu", "sha256": next(iter(SPEC.files.values()), "")}
    model.meter.set_loaded()
    assert counted(model, "model_info", **labels) == 1
    model.meter.set_loaded(False)
    assert counted(model, "model_info", **labels) == 0


def test_reasons_are_there_before_they_are_counted() -> None:
    before = REGISTRY.get_sample_value("servekit_shed_total", {"reason": "rate"}) or 0.0
    metrics.observe_shed("rate")
    metrics.observe_refused_key("missing")
    assert REGISTRY.get_sample_value("servekit_shed_total", {"reason": "rate"}) == before + 1
    assert REGISTRY.get_sample_value("servekit_refused_keys_total", {"reason": "missing"})
