"""Gunicorn's settings for the plain application: none of the project's hooks, only what tests of a worker need."""

from typing import Any

worker_tmp_dir = "/dev/shm"
control_socket_disable = True
forwarder_headers = ""
graceful_timeout = 10
READY = "a plain worker is ready"


def post_worker_init(worker: Any) -> None:
    """Say that this worker has loaded the application; the tests wait for it."""
    worker.log.info(READY)


def pre_request(worker: Any, req: Any) -> None:
    """Note what a hook is given before a request, for the one request that asks for it."""
    if req.path == "/hooked":
        worker.log.info("pre_request %s %s %s %s", worker.pid, req.method, req.path, req.query)


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """Note what a hook is given after a request."""
    if req.path == "/hooked":
        worker.log.info("post_request %s %s %s %s", worker.pid, req.method, environ["PATH_INFO"], resp.status)
