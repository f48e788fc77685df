"""Tests, flat functions that mirror the tree; `tests.networks` and `tests.server` are what they share."""
