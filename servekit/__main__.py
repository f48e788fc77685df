"""`python -m servekit`: the command `servekit`."""

import sys

from servekit.cli import main

sys.exit(main())
