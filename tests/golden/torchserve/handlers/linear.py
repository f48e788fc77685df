"""A number in plain text through a network that the base handler loads."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class Linear(BaseHandler):
    def preprocess(self, data):
        rows = [row.get("data") or row.get("body") for row in data]
        return torch.tensor([[float(row if isinstance(row, str) else bytes(row))] for row in rows])
