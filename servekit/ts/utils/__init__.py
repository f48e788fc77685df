"""Small functions that handlers share."""
