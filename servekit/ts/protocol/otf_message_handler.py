"""The place that `send_intermediate_predict_response` was first imported from."""

from servekit.ts.handler_utils.utils import send_intermediate_predict_response

__all__ = ["send_intermediate_predict_response"]
