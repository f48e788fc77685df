"""One process of a group: `python -m servekit.grpc HOST:PORT SERVER_HOST SERVER_PORT MAX_BODY_BYTES LIFELINE`."""

import asyncio
import logging
import os
import sys

from servekit.config import Settings
from servekit.errors import StartupError
from servekit.grpc.group import GAVE_UP
from servekit.grpc.server import serve
from servekit.keys import Keyring

if __name__ == "__main__":
    bind, host, port, max_body_bytes, lifeline = sys.argv[1:]
    logging.basicConfig(format="%(asctime)s %(levelname)s [%(process)d] %(message)s")
    try:
        settings = Settings.from_environ(os.environ)
        keyring = Keyring(settings) if settings.has_keys else None
        server, limit = (host, int(port)), int(max_body_bytes)
        asyncio.run(serve(bind, server, limit, is_shared=True, lifeline=int(lifeline), keyring=keyring))
    except StartupError as error:
        print(f"servekit cannot start: {error}", file=sys.stderr)
        sys.exit(GAVE_UP)
