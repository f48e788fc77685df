"""Codecs: what clients write, of one form a module, into values and arrays and back; pure functions that know no HTTP."""
