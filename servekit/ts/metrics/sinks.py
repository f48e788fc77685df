"""Where the values of handlers' metrics go: a function that the server gives each model."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

# name, kind ("counter", "gauge" or "histogram"), value, unit ("Milliseconds"), dimensions by name
Sink = Callable[[str, str, float, str, dict[str, str]], None]


def drop(name: str, kind: str, value: float, unit: str, dimensions: dict[str, str]) -> None:
    """Do nothing with a value."""


_sink: ContextVar[Sink] = ContextVar("servekit_sink", default=drop)


def current() -> Sink:
    """Return the sink of the model whose handler runs; one that drops everything elsewhere."""
    return _sink.get()


@contextlib.contextmanager
def using(sink: Sink) -> Iterator[None]:
    """Within it, metrics that a handler makes by itself go to `sink`."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)
