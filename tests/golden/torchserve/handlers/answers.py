"""Answers, or fails, as the body of the request says."""

import os
import time

from ts.utils.util import PredictionException

ITEMS = {
    "str": "häh",
    "empty str": "",
    "bytes": b"\x00\xffbytes",
    "bytearray": bytearray(b"bytearray"),
    "dict": {"b": 1, "a": [1.5, None, True, "ä<&>"]},
    "list": [1, [2, 3]],
    "empty dict": {},
    "int": 7,
    "float": 0.1,
    "nan": float("nan"),
    "bool": True,
    "none": None,
    "object": object(),
    "set": {1},
}


def handle(data, context):
    if data is None:
        return None
    rows = [row.get("data") or row.get("body") or b"" for row in data]
    texts = [bytes(row).decode() if not isinstance(row, str) else row for row in rows]
    for index, text in enumerate(texts):
        dress(text, index, context)
    for text in texts:
        if text in WHOLE:
            return WHOLE[text](context)
    return [ITEMS.get(text, text) for text in texts]


def dress(text, index, context):
    """Set status, headers and content type of answer `index`."""
    if text.startswith("status"):
        code, _, phrase = text.removeprefix("status ").partition(" ")
        context.set_response_status(int(code), phrase, index)
    if text == "all status":
        context.set_all_response_status(418, "All of them")
    if text.startswith("type "):
        context.set_response_content_type(index, text.removeprefix("type "))
    if text.startswith("header "):
        name, _, value = text.removeprefix("header ").partition("=")
        context.set_response_header(index, name, value)


def fail(error):
    raise error


def tensor(context):
    import torch

    return [torch.tensor([1.0, 2.0])]


def tensor_list(context):
    import torch

    return torch.tensor([[1.0, 2.0]])


def sleep(context):
    time.sleep(1.5)
    return ["slept"]


WHOLE = {
    "raise": lambda context: fail(ValueError("the handler's own words")),
    "memory": lambda context: fail(MemoryError("no more")),
    "cuda": lambda context: fail(RuntimeError("CUDA error: out of memory")),
    "exit": lambda context: os._exit(1),
    "system exit": lambda context: fail(SystemExit(1)),
    "prediction": lambda context: fail(PredictionException("Some Prediction Error", 599)),
    "prediction plain": lambda context: fail(PredictionException("Some Prediction Error")),
    "prediction 400": lambda context: fail(PredictionException("Bad input", 400)),
    "assert": lambda context: fail(AssertionError()),
    "not a list": lambda context: {"a": 1},
    "a string": lambda context: "text",
    "a tuple": lambda context: ("text",),
    "none at all": lambda context: None,
    "no item": lambda context: [],
    "two items": lambda context: [1, 2],
    "tensor": tensor,
    "tensor list": tensor_list,
    "sleep": sleep,
    "large": lambda context: ["x" * 3000],
}
