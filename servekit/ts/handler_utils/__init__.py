"""Parts that handlers are built from."""
