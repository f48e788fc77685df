"""Blueprints: one contract a file, its `Blueprint` called `bp`; none imports another."""
