"""Vertex AI's contract for custom containers: the routes that `AIP_*` variables name."""

from flask import Blueprint

bp = Blueprint("vertex", __name__)
