"""What the server does when things go wrong: `python -m bench.faults`. Every module here that has FAULTS adds rows."""
