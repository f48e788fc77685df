"""How tests read TorchServe's metrics page."""

import re

REQUESTS = r'Requests2XX\{Level="Host",Hostname=".*",\} \d+\.\d+'  # as TorchServe's own tests look for it


def samples(text: str) -> dict[str, float]:
    """Return the samples of a page by what stands before their value, without the host's name."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {re.sub(r',[Hh]ostname="[^"]*"', "", name): float(value) for name, _, value in lines}
