"""How the server counts: one function or method for each thing that happens, with its series looked up beforehand."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from http import HTTPMethod, HTTPStatus

from servekit.errors import DeadlineExceeded, HandlerFailed, Overloaded, RequestError
from servekit.metrics import families as to
from servekit.metrics.statistics import statistics_meter
from servekit.metrics.values import Together, Update, adder, answer_observer, lock

UNMATCHED = "unmatched"  # the route label of a request that no route takes
OTHER = "other"  # the method label of a method that HTTP does not define

OUTCOMES = ("ok", "invalid", "shed", "late", "failed")
SHED_REASONS = ("rows", "bodies", "large", "connections", "rate", "deadline")
KEY_REASONS = ("missing", "unknown", "forbidden")
RESTART_REASONS = ("killed", "crashed", "stuck", "timeout", "max_requests", "exit")

_METHODS = frozenset(HTTPMethod)


@lru_cache(maxsize=1000)  # methods, routes and statuses are few; finding a series takes longer than counting
def _request_series(method: str, route: str, status: str) -> Callable[[float, int], None]:
    method = method if method in _METHODS else OTHER
    return answer_observer(to.requests.labels(method, route, status), to.request_seconds.labels(method, route), to.in_flight)


def observe_request(method: str, route: str, status: str, seconds: float, landed: int = 0) -> None:
    """Count one answered request; `route` is a pattern of the route table or UNMATCHED. `landed` are in flight no more."""
    _request_series(method, route, status)(seconds, landed)


def observe_refusal(status: int) -> None:
    """Count a request that the application never saw, because it was no HTTP, too large, or too slow to arrive."""
    to.requests.labels(OTHER, UNMATCHED, status).inc()


add_in_flight: Update = to.in_flight._value.inc
add_rows_waiting: Update = to.rows_waiting._value.inc
_rows_waiting = adder(to.rows_waiting)


def observe_connections(number: int) -> None:
    """Note how many connections this worker holds."""
    to.connections.set(number)


def observe_shed(reason: str) -> None:
    """Count a request that is refused for want of room; `reason` is one of SHED_REASONS."""
    to.shed.labels(reason).inc()


def observe_refused_key(reason: str) -> None:
    """Count a request that is refused for its key; `reason` is one of KEY_REASONS."""
    to.refused_keys.labels(reason).inc()


def observe_load(model: str, version: str, seconds: float, is_loaded: bool) -> None:
    """Count a version that this worker has loaded in so many seconds, or could not load."""
    to.model_loads.labels(model, version, "ok" if is_loaded else "failed").inc()
    if is_loaded:
        to.model_load_seconds.labels(model, version).observe(seconds)


def observe_restart(reason: str, number: int = 1) -> None:
    """Count, in the master, a worker that has ended and is replaced; `reason` is one of RESTART_REASONS."""
    to.worker_restarts.labels(reason).inc(number)


def set_serving() -> None:
    """Count this worker among those that serve."""
    to.workers.set(1)


def outcome_of(error: BaseException) -> str:
    """Return what of OUTCOMES a prediction that ended in `error` is counted as."""
    if isinstance(error, Overloaded):
        return "shed"
    if isinstance(error, DeadlineExceeded):
        return "late"
    is_clients = isinstance(error, RequestError) and error.status < HTTPStatus.INTERNAL_SERVER_ERROR
    return "invalid" if is_clients else "failed"


def is_of_models_code(error: BaseException) -> bool:
    """Return True if `error` is an exception of a model's or handler's own code, which no request explains."""
    if isinstance(error, HandlerFailed):
        return error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return not isinstance(error, RequestError | MemoryError)


# The histograms that each prediction or pass observes, and their bounds.
_HISTOGRAMS = (
    *(to.prediction_seconds, to.preprocess_seconds, to.postprocess_seconds, to.inference_seconds, to.queue_seconds),
    to.batch_rows,
)
_LOWEST = to.SECONDS[0]  # which most steps take less than


@cache
def _histograms(model: str, version: str) -> Together:
    return Together([each.labels(model, version) for each in _HISTOGRAMS])


class ModelMeter:
    """The metrics and statistics of one loaded version, looked up once."""

    def __init__(self, model: str, version: str, engine: str = "", device: str = "", sha256: str = "") -> None:
        key = (model, version)
        self._rows = adder(to.rows.labels(*key))
        self._histograms = _histograms(*key)
        # Each is where its buckets and at last its sum are: found here, not in a list of lists, which is slow to get at.
        self._whole, self._before, self._after, self._inference, self._queue, self._batch = self._histograms.places
        self._outcomes = {outcome: adder(to.predictions.labels(*key, outcome)) for outcome in OUTCOMES}
        self._ok = self._outcomes["ok"]
        self._misses = adder(to.deadline_misses.labels(*key))
        self._errors = adder(to.handler_errors.labels(*key))
        self._loaded = to.models_loaded.labels(*key)
        self._info = to.model_info.labels(*key, engine, device, sha256) if engine else None
        self._statistics = statistics_meter(model, version)

    def set_loaded(self, is_loaded: bool = True) -> None:
        """Count this worker among those that hold the version, or no more."""
        self._loaded.set(int(is_loaded))
        if self._info is not None:
            self._info.set(int(is_loaded))

    def observe(self, row_count: int, seconds: float, waits: Sequence[float]) -> None:
        """Count one pass of `row_count` rows that took `seconds`, and whose requests had waited for `waits` seconds."""
        waited = waits[0]
        with lock():
            numbers = self._histograms.numbers
            if numbers is None:  # the first time in this process
                numbers = self._histograms.find()
            inference, queue, batch = self._inference, self._queue, self._batch
            numbers[inference[bisect_left(to.SECONDS, seconds)]] += 1.0
            numbers[inference[-1]] += seconds
            numbers[queue[0 if waited <= _LOWEST else bisect_left(to.SECONDS, waited)]] += 1.0
            numbers[queue[-1]] += waited
            numbers[batch[bisect_left(to.ROWS, row_count)]] += 1.0
            numbers[batch[-1]] += row_count
            self._rows(row_count)
            self._statistics.observe_pass(row_count, seconds, waits)

    def observe_prediction(
        self, seconds: float, preprocess: float = 0.0, postprocess: float = 0.0, good: int = 1, bad: int = 0, leaving: int = 0
    ) -> None:
        """Count `good` predictions that took so many seconds in all, and in the steps before and after their passes.

        `bad` ones, which came with them, were the client's mistake. `leaving` rows of them wait no more.
        """
        with lock():
            numbers = self._histograms.numbers
            if numbers is None:  # the first time in this process
                numbers = self._histograms.find()
            whole, before, after = self._whole, self._before, self._after
            numbers[whole[bisect_left(to.SECONDS, seconds)]] += 1.0
            numbers[whole[-1]] += seconds
            numbers[before[0 if preprocess <= _LOWEST else bisect_left(to.SECONDS, preprocess)]] += 1.0
            numbers[before[-1]] += preprocess
            numbers[after[0 if postprocess <= _LOWEST else bisect_left(to.SECONDS, postprocess)]] += 1.0
            numbers[after[-1]] += postprocess
            self._ok(good)
            self._statistics.observe_request(preprocess, postprocess)
            if leaving:
                _rows_waiting(-leaving)
            if bad:
                self._outcomes["invalid"](bad)

    def count(self, outcome: str, number: int) -> None:
        """Count so many predictions by their outcome alone."""
        if number:
            with lock():
                self._outcomes[outcome](number)

    def observe_failure(self, error: Exception, seconds: float, number: int = 1) -> None:
        """Count predictions, by default one, that ended in `error` after so many seconds."""
        outcome = outcome_of(error)
        self.count(outcome, number)
        with lock():
            if outcome == "late":
                self._misses(number)
            self._statistics.observe_failure(seconds)

    def observe_error(self) -> None:
        """Count an exception of the model's own code."""
        with lock():
            self._errors(1)
