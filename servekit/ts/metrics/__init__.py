"""The metrics that handlers count for themselves."""
