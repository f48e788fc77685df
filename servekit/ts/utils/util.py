"""Labels of classes, the classes of a module, and the error whose status a handler chooses."""

import inspect
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

# what text handlers take out: tags and named or numbered characters of HTML
CLEANUP_REGEX = re.compile(r"<[^>]*>|&(?:[a-z0-9]+|#[0-9]{1,6}|#x[0-9a-f]{1,6});")


class PredictionException(Exception):  # noqa: N818  (handlers know it by this name)
    """Raised by a handler: the client gets `message` with the status `error_code`."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        """Take the words and the status."""
        super().__init__(message, error_code)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """Return the classes that `module` itself defines, only those below `parent_class` if it is given."""
    classes = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    return [cls for cls in classes if parent_class is None or issubclass(cls, parent_class)]


def load_label_mapping(mapping_file_path: str | Path) -> dict[str, str] | None:
    """Read `index_to_name.json`: class number -> name, in any of its three forms; None if there is no such file.

    {"0": "cat"}, {"0": ["n02123045", "cat"]} whose last element is the name, or {"object_type_names": ["cat"]}.
    """
    path = Path(mapping_file_path)
    if not path.is_file():
        log.info("The archive has no %s: classes are given by their numbers.", path.name)
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold one JSON object that maps class numbers to names.")
    names = content.get("object_type_names")
    if isinstance(names, list):
        content = dict(enumerate(names))
    labels = {str(key): value[-1] if isinstance(value, list) and value else value for key, value in content.items()}
    for key, label in labels.items():
        if not isinstance(label, str):
            raise ValueError(f"{path.name} must give each class a string or a list of strings, but class {key} has none.")
    return labels


def map_class_to_label(
    probs: Sequence[Sequence[Any]],
    mapping: Mapping[str, str] | None = None,
    lbl_classes: Sequence[Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """Return for every row of `probs` what each class has, by the class's name: label -> probability.

    `lbl_classes` holds the class numbers of each row, by default 0, 1, 2, ...; a class without a name goes by its number.
    """
    if not isinstance(probs, list):
        raise TypeError("The probabilities must be a list; call tolist() first.")
    labels = mapping or {}
    rows = lbl_classes if lbl_classes is not None else [range(len(row)) for row in probs]
    return [
        {labels.get(str(number), str(number)): value for number, value in zip(numbers, values, strict=False)}
        for numbers, values in zip(rows, probs, strict=False)
    ]


def get_yaml_config(yaml_file_path: str | Path) -> dict[str, Any]:
    """Read a YAML file of plain values."""
    import yaml

    return yaml.safe_load(Path(yaml_file_path).read_text(encoding="utf-8")) or {}
