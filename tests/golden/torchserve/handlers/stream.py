"""Answers in pieces."""

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return None
    if data[0].get("body") in ("type", b"type"):
        context.set_response_content_type(0, "text/event-stream")
    for piece in ("one ", "two "):
        send_intermediate_predict_response([piece], context.request_ids, "Intermediate Prediction success", 200, context)
    return ["three"]
