"""The command `serve` of a container: SageMaker starts an image with this one word, or `train`."""

import os
import sys
from collections.abc import Sequence

from servekit.cli.serve import serve
from servekit.config import PREFIX
from servekit.errors import StartupError
from servekit.platforms import SAGEMAKER


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve as SageMaker asks for it, with options of Gunicorn in `arguments`; return the status if that cannot be."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:
        print("servekit serves models and does not train them; start this image with the command serve.", file=sys.stderr)
        return 1
    os.environ.setdefault(f"{PREFIX}PLATFORM", SAGEMAKER)
    try:
        serve([], None, given[1:] if given[:1] == ["serve"] else given)  # an entry point is given its own name, too
    except StartupError as error:
        print(f"servekit cannot start: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
