"""Stands in for the package `ts`."""
