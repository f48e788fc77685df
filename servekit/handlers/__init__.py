"""Handlers: what a model's data mean, one module a kind of model; numpy and Pillow only."""
