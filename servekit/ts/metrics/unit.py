"""The units of metrics: short as handlers write them, in words as they are reported."""

UNITS: dict[str | None, str] = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "percent": "Percent",
    "count": "Count",
    "B": "Bytes",
    "kB": "Kilobytes",
    "MB": "Megabytes",
    "GB": "Gigabytes",
    "": "unit",
    None: "unit",
}


class Units:
    """The table under the name that handlers know."""

    def __init__(self) -> None:
        """Give each its own copy, as handlers may add to it."""
        self.units = dict(UNITS)
