"""The Open Inference Protocol (V2) over HTTP, as clients of Triton and KServe speak it: `/v2`."""

from flask import Blueprint

bp = Blueprint("open_inference", __name__)
