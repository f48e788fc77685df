"""One process of a group: `python -m servekit.grpc HOST:PORT SERVER_HOST SERVER_PORT MAX_BODY_BYTES LIFELINE`."""

import asyncio
import logging
import sys

from servekit.errors import StartupError
from servekit.grpc.group import GAVE_UP
from servekit.grpc.server import serve

if __name__ == "__main__":
    bind, host, port, max_body_bytes, lifeline = sys.argv[1:]
    logging.basicConfig(format="%(asctime)s %(levelname)s [%(process)d] %(message)s")
    try:
        asyncio.run(serve(bind, (host, int(port)), int(max_body_bytes), is_shared=True, lifeline=int(lifeline)))
    except StartupError as error:
        print(f"servekit cannot start: {error}", file=sys.stderr)
        sys.exit(GAVE_UP)
