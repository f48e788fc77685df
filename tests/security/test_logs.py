"""CWE-117: what a client has written never passes for a line of the log, in either format."""

import io
import json
import logging
import re

import pytest

from servekit.logs import configure_handler, on_its_own_lines
from tests.security.apps import Apps
from tests.security.hostile import JSON, form

FORGED = "2026-01-01 00:00:00,000 INFO [1] [-] forged"
TEXTS = (
    *(f"x\r\n{FORGED}", f"x\n{FORGED}", f"x\r{FORGED}", f"x\x0b{FORGED}", f"x\x0c{FORGED}", f"x\x85{FORGED}"),
    *(f"x\u2028{FORGED}", f"x\u2029{FORGED}", f"x\x1c{FORGED}", f"\x1b[2K\x1b[1A{FORGED}", f"\x9b2K{FORGED}", f"\x08\x08{FORGED}"),
    *("\u202eforged", "\ud800forged", "\x00forged", "\U000e0041forged", '"},{"msg": "forged'),
)


def written(log_format: str, message: str, *arguments: object, error: Exception | None = None) -> str:
    """Return what the log holds after a message."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    configure_handler(handler, log_format)
    found = (type(error), error, None) if error else None
    handler.handle(logging.LogRecord("servekit", logging.ERROR, "", 0, message, arguments, found))
    return stream.getvalue()


@pytest.mark.parametrize("text", TEXTS)
def test_a_message_stays_in_its_line(text: str) -> None:
    for message, error in (("%s was not loaded", None), ("It failed: %s", ValueError(text))):
        for line in written("text", message, text, error=error).splitlines()[1:]:
            assert line.isprintable() and not re.match(r"\d{4}-", line), line
        lines = written("json", message, text, error=error).splitlines()
        assert len(lines) == 1 and lines[0].isprintable()
        assert json.loads(lines[0])["msg"] == message % text


def test_what_is_plain_is_not_touched() -> None:
    assert on_its_own_lines("Überall: 5 Zeilen") == "Überall: 5 Zeilen"
    assert on_its_own_lines("The handler failed:\n  File\n\tx") == "The handler failed:\n  File\n\tx"


@pytest.mark.parametrize("text", TEXTS)
def test_no_name_that_a_client_gives_comes_into_the_log_raw(
    apps: Apps, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    caplog.set_level(logging.DEBUG)
    name = text.encode("utf-8", "surrogatepass")
    body = json.dumps({"url": text, "model_name": text, "id": text, "value": text}).encode()
    for app, path in (("none", "/predict"), ("multi_model", "/models"), ("management", "/models")):
        apps.ask(app, "POST", path, body, JSON)
    apps.ask("none", "POST", "/mnist/predict", *form(('name="file"; filename="x"', name)))
    for record in caplog.records:
        message = record.getMessage()
        assert "forged" not in message or "was not downloaded" in message or message.isprintable(), message
