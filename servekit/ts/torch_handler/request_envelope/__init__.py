"""Translations between what clients of other servers send and what a handler sees."""
