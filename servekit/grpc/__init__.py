"""gRPC V2 (`inference.GRPCInferenceService`) in front of a running server: each call becomes one of its V2 HTTP requests.

These processes hold no model. Repository state, batching, deadlines, limits and statistics stay those of the one server
behind them, and a process needs neither torch nor numpy.
"""
