"""What a WSGI server loads that is given a module: `flask --app wsgi run` for development."""

from servekit.app import application

app = application()
