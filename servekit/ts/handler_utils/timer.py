"""How long the steps of a handler take, if its model-config.yaml says `handler: {profile: true}`."""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any


def timed(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a handler's method so that it reports its time in ms as `ts_handler_<method>`, if it is asked to."""

    @functools.wraps(func)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_profiled(getattr(self, "context", None)):
            return func(self, *args, **kwargs)
        started = time.perf_counter()
        result = func(self, *args, **kwargs)
        _finish_kernels()
        self.context.metrics.add_time(f"ts_handler_{func.__name__}", (time.perf_counter() - started) * 1000)
        return result

    return wrapper


def _is_profiled(context: Any) -> bool:
    section = (getattr(context, "model_yaml_config", None) or {}).get("handler")
    return isinstance(section, dict) and bool(section.get("profile"))


def _finish_kernels() -> None:
    """Wait for what was sent to the GPU, whose time belongs to the step."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
