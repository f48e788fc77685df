"""What a metric is told apart by."""


class Dimension:
    """A name and a value, such as Level and Model."""

    def __init__(self, name: str, value: object) -> None:
        """Take name and value."""
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {"Name": self.name, "Value": self.value}
