"""What SageMaker and MLflow send to `/invocations`, by its content type, into Tensors; and the answer by what is accepted.

Sources: the SageMaker inference toolkit, SageMaker's "Common data formats for inference", MLflow's scoring server.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servekit.codecs.arrays import dump_json, load_json, to_array
from servekit.codecs.instances import columns_of, predictions_of, rows_of
from servekit.codecs.npy import read_npy, write_npy
from servekit.codecs.tables import from_table, read_csv, read_json_lines, write_csv, write_json_lines
from servekit.errors import InvalidInput, NotAcceptable, UnsupportedMediaType
from servekit.signature import Signature, array_dtype
from servekit.tensors import Tensors, bytes_tensor

JSON, CSV, JSON_LINES = "application/json", "text/csv", "application/jsonlines"
NPY, NPZ = "application/x-npy", "application/x-npz"
IMAGES = ("image/png", "image/jpeg", "application/x-image")
ANY = "*/*"
OFFERS = (JSON, CSV, JSON_LINES, NPY)  # what answers may be written as
MAX_ACCEPTED = 50  # ranges of one Accept header

_FORMS = ("instances", "inputs", "dataframe_split", "dataframe_records")


@dataclasses.dataclass(frozen=True)
class Scored:
    """The inputs of a request, and whether its answer in JSON is an object around the predictions."""

    tensors: Mapping[str, NDArray[Any]]
    is_wrapped: bool


def read(body: bytes, content_type: str, signature: Signature, has_header: bool = False) -> Scored:
    """Return what `body` of `content_type` holds for a model with `signature`; `has_header`: CSV begins with names.

    Raises UnsupportedMediaType, or InvalidInput for a body that is not what its content type says, or not the model's.
    """
    kind = media_type(content_type)
    if kind == JSON:
        return _read_json(body, signature)
    if kind == CSV:
        return Scored(read_csv(body, signature, has_header), False)
    if kind == JSON_LINES:
        return Scored(read_json_lines(body, signature), False)
    if kind == NPY:
        return Scored(read_npy(body, signature), False)
    if kind in IMAGES:
        return Scored(_read_image(body, signature), True)
    if kind == NPZ:
        raise UnsupportedMediaType("application/x-npz is not read: a small one may inflate to anything; send x-npy.")
    raise UnsupportedMediaType(f"That content type is not read; send one of: {', '.join((*OFFERS, *IMAGES))}.")


def write(tensors: Tensors, signature: Signature, media: str, is_wrapped: bool) -> bytes:
    """Return the predictions as `media`, one of OFFERS; raise NotAcceptable for what it cannot hold."""
    if media == CSV:
        return write_csv(tensors, signature)
    if media == JSON_LINES:
        return write_json_lines(tensors, signature)
    if media == NPY:
        return write_npy(tensors, signature)
    predictions = predictions_of(tensors, signature)
    return dump_json({"predictions": predictions} if is_wrapped else predictions)


def media_type(content_type: str) -> str:
    """Return the media type of a header without its parameters; raise UnsupportedMediaType if it says no UTF-8."""
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMediaType("Only UTF-8 is read; leave the charset out, or say utf-8.")
    return kind


def choose(accept: str, default: str, offers: Sequence[str] = OFFERS) -> str:
    """Return which of `offers` a client wants whose Accept header is `accept`; without one `default`.

    The highest q wins (RFC 9110, section 12.5.1), then the order of the header. Raises NotAcceptable if it is none.
    """
    ranges = [_range_of(part) for part in accept.split(",", MAX_ACCEPTED)[:MAX_ACCEPTED] if part.strip()]
    refused = {media for media, quality in ranges if not quality}
    for media, _ in sorted(ranges or [(ANY, 1.0)], key=lambda each: -each[1]):
        if media in refused:
            continue
        for offer in (default, *offers):
            if offer in offers and offer not in refused and media in (offer, ANY, f"{offer.partition('/')[0]}/*"):
                return offer
    raise NotAcceptable(f"The answer cannot be written so; accept one of: {', '.join(offers)}.")


def _range_of(part: str) -> tuple[str, float]:
    media, *parameters = (each.strip().lower() for each in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                quality = 0.0
    return media, quality


def _read_json(body: bytes, signature: Signature) -> Scored:
    value = load_json(body)
    if isinstance(value, list):
        return Scored(rows_of(value, signature, takes_whole_floats=True), False)
    forms = [form for form in _FORMS if isinstance(value, dict) and form in value]
    if len(forms) != 1:
        raise InvalidInput(f"The JSON must be a list of rows, or an object with exactly one of: {', '.join(_FORMS)}.")
    content = value[forms[0]]
    if forms[0] == "instances":
        return Scored(rows_of(content, signature, takes_whole_floats=True), True)
    if forms[0] == "inputs":
        return Scored(columns_of(content, signature, takes_whole_floats=True), True)
    names, rows = _split(content) if forms[0] == "dataframe_split" else _records(content)
    return Scored(_from_frame(names, rows, signature), True)


def _split(frame: Any) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a frame of pandas' orient "split"; without names the columns count from 0."""
    rows = frame.get("data") if isinstance(frame, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise InvalidInput('dataframe_split must be an object such as {"columns": ["a"], "data": [[1.0]]}.')
    names = frame.get("columns") or [str(number) for number in range(len(rows[0]))]
    if not isinstance(names, list) or len({str(name) for name in names}) != len(names):
        raise InvalidInput("The columns of dataframe_split must be a list of different names.")
    if any(len(row) != len(names) for row in rows):
        raise InvalidInput("Every row of dataframe_split must have as many values as there are columns.")
    return [str(name) for name in names], rows


def _records(frame: Any) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a frame of pandas' orient "records", whose first row gives the order."""
    if not isinstance(frame, list) or not frame or not all(isinstance(row, dict) for row in frame):
        raise InvalidInput('dataframe_records must be a list of objects such as {"a": 1.0}.')
    names = list(frame[0])
    if any(row.keys() != frame[0].keys() for row in frame):
        raise InvalidInput("Every row of dataframe_records must have the same columns.")
    return names, [[row[name] for name in names] for row in frame]


def _from_frame(names: list[str], rows: list[list[Any]], signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the inputs: each is the column of its name, or the columns in their order are their values side by side."""
    if set(names) == {spec.name for spec in signature.inputs}:
        columns = {name: [row[number] for row in rows] for number, name in enumerate(names)}
        return columns_of(columns, signature, takes_whole_floats=True)
    if not signature.is_batched or any(array_dtype(spec) == object for spec in signature.inputs):
        wanted = ", ".join(spec.name for spec in signature.inputs)
        raise InvalidInput(f"The columns must be called as the inputs of the model are: {wanted}.")
    return from_table(_table(rows), signature)


def _table(rows: list[list[Any]]) -> NDArray[np.float64]:
    table = to_array(rows, np.dtype(np.float64))
    if table.ndim != 2:
        raise InvalidInput("The values of a data frame must be numbers.")
    return table


def _read_image(body: bytes, signature: Signature) -> dict[str, NDArray[Any]]:
    encoded = [spec.name for spec in signature.inputs if spec.name in signature.encoded]
    if len(encoded) != 1 or len(signature.inputs) != 1:
        raise UnsupportedMediaType("This model takes no image as the whole of a request.")
    return {encoded[0]: bytes_tensor([body])}
