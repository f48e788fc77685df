"""Triton's model repository: what its folders and its config.pbtxt say, in servekit's terms."""
