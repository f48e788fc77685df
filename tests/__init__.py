"""Tests, flat functions that mirror the tree; `tests.networks` and `tests.server` are what they share."""

import os

# Test processes share the cores: threads of OpenMP in each would only fight those of the others, and spin meanwhile.
# Training took eight times as long. It is read when torch is loaded, here or in a server under test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
