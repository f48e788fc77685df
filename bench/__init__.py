"""How fast servekit is, beside its own limits and beside its peers: `python -m bench`, `python -m bench --peers`."""
