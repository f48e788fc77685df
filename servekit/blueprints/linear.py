"""The linear regressor: a number in, a number out."""

from typing import Any

import numpy as np
from flask import Blueprint

from servekit import ext
from servekit.codecs.values import finite, parse_number
from servekit.errors import InvalidInput
from servekit.model import Model
from servekit.openapi import FORM, Example

bp = Blueprint("linear", __name__)


@bp.post("/linear/predict")
def predict() -> dict[str, Any]:
    """Predict from `value`, a form field or a member of JSON: `{"input": 5.0, "prediction": 8.99}`.

    400 for a value that is missing, sent twice, or no finite number; 504 past the deadline.
    """
    value = read_value(ext.payload().one("value"))
    model = ext.repository().get("linear")
    source, target = model.spec.inputs[0].name, model.spec.outputs[0].name
    answer = model.predict({source: np.array([[value]])}, ext.deadline())
    return {"input": value, "prediction": answer[target][0].item()}


def examples(model: Model) -> list[Example]:
    """Return requests for the model that this contract serves."""
    if model.name != "linear":
        return []
    return [
        Example("linear.predict", {}, {"value": 5}, FORM, summary="A number"),
        Example("linear.predict", {}, {"value": 5}, summary="A number"),
    ]


def read_value(member: Any) -> float:
    """Return the number that a form's text or a JSON number stands for; raise InvalidInput."""
    if isinstance(member, str) and member.strip():
        return parse_number(member)
    if isinstance(member, int | float) and not isinstance(member, bool):
        return finite(member)
    raise InvalidInput("There is no value; send a number as value=5, or as JSON {\"value\": 5}.")
