"""Tests, flat functions that mirror the tree; `tests.networks` and `tests.server` are what they share."""

import os

# Test processes share the cores, and threads of OpenMP that spin while they wait for work take them from each other:
# training took eight times as long. It reads this when torch is loaded, here or in a server under test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
