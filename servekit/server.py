"""Gunicorn's settings; a `gunicorn.conf.py`, `GUNICORN_CMD_ARGS` and the command line win over them.

`servekit torchserve` hands TorchServe's settings on in the variable SERVEKIT_TORCHSERVE; some of Gunicorn's follow from
them. The master imports this module, so it loads nothing that starts threads.
"""

import os
import sys
from importlib.util import find_spec

from servekit.config import PREFIX, usable_cores
from servekit.errors import SettingError
from servekit.hooks import Logger, child_exit, on_starting, post_fork, post_worker_init, pre_fork  # noqa: F401
from servekit.logs import ACCESS_FORMAT
from servekit.platforms import AUTO, Platform, platform_of, positive
from servekit.torchserve.properties import Properties


def _torchserve() -> Properties | None:
    """Return TorchServe's settings if this server is to stand in for it; end the process if they cannot be read."""
    text = os.environ.get(f"{PREFIX}TORCHSERVE")
    if not text:
        return None
    try:
        return Properties.parse(text)
    except SettingError as error:  # Gunicorn would print a traceback
        sys.exit(f"servekit cannot start: {error}")


def _platform() -> Platform:
    """Return what the platform asks for; end the process if its variables cannot be read."""
    try:
        return platform_of(os.environ, os.environ.get(f"{PREFIX}PLATFORM", AUTO))
    except SettingError as error:
        sys.exit(f"servekit cannot start: {error}")


def _asked_workers() -> int | None:
    """Return the number of workers that WEB_CONCURRENCY asks for, if it does; end the process if it is none."""
    try:
        return positive(os.environ, "WEB_CONCURRENCY", 0) if os.environ.get("WEB_CONCURRENCY") else None
    except SettingError as error:
        sys.exit(f"servekit cannot start: {error}")


_properties = _torchserve()
_cloud = _platform()

wsgi_app = "servekit.app:application()"
bind = [_cloud.bind]  # loopback unless a cloud asks for more: whoever opens it to a network decides so

# One worker a core with one thread of arithmetic each: more of either fight for the same cores.
workers = int(_asked_workers() or _cloud.workers or usable_cores())
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# The event loop batches requests and stands slow clients; what it needs is an extra, and Gunicorn's own class does without.
worker_class = "servekit.worker.Worker" if all(map(find_spec, ("greenlet", "httptools"))) else "gthread"
threads = 16  # of gthread: they read and write while the network computes

timeout = 30  # a worker whose loop is silent for so long is replaced; what computes beside it has limits of its own
graceful_timeout = 25  # below the 30 s after which orchestrators kill
keepalive = 75  # above the 60 s of most load balancers and clients, which send a request just when it is closed

worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a heartbeat on a busy disk can be late
control_socket_disable = True  # its default path is shared by every Gunicorn of a user

forwarder_headers = ""  # no header of a client sets the script name or path

logger_class = Logger
accesslog = "-"
access_log_format = ACCESS_FORMAT
loglevel = _cloud.log_level

if _properties is not None:
    bind = [address.bind for address in _properties.addresses]
    # A model of its users is as large as they like: as many copies as they ask for, and one if they do not.
    workers = int(_asked_workers() or _properties.default_workers_per_model or 1)
    loglevel = _properties.log_level
