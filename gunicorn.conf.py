"""What `gunicorn` reads in this folder: servekit's own settings; what is written below them wins.

`GUNICORN_CMD_ARGS` and the command line win over both, as Gunicorn documents.
"""

from servekit.server import *  # noqa: F401,F403
