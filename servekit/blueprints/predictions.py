"""TorchServe's `/predictions/<model>` for models of the model store, at servekit's own address."""

from flask import Blueprint

bp = Blueprint("predictions", __name__)
