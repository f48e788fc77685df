"""TensorFlow Serving's REST API, and V1 of KServe: `/v1/models`."""

from flask import Blueprint

bp = Blueprint("tensorflow_serving", __name__)
