"""SageMaker's container contract, and MLflow's scoring server: `/ping`, `/invocations`, `/models`."""

from flask import Blueprint

bp = Blueprint("sagemaker", __name__)
