"""What a WSGI server loads: `gunicorn` in production, `flask --app wsgi run` for development."""

from servekit.app import create_app
from servekit.errors import StartupError
from servekit.hooks import refuse

try:
    app = create_app()
except StartupError as error:
    refuse(error)
