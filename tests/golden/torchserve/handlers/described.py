"""Describes itself on request, and explains."""

from ts.torch_handler.base_handler import BaseHandler


class Described(BaseHandler):
    def initialize(self, context):
        self.context = context
        self.initialized = True

    def preprocess(self, data):
        rows = [row.get("data") or row.get("body") or "0" for row in data]
        return [float(row if isinstance(row, str) else bytes(row)) for row in rows]

    def inference(self, data, *args, **kwargs):
        return [2 * number for number in data]

    def postprocess(self, data):
        return data

    def describe_handle(self):
        return {"task": "doubling", "inputs": [1, 2]}

    def explain_handle(self, data_preprocess, raw_data):
        return [{"explained": number} for number in data_preprocess]
