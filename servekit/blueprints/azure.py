"""Azure ML's inference server: `/score`."""

from flask import Blueprint

bp = Blueprint("azure", __name__)
