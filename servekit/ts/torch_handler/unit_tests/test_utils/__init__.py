"""What authors of handlers test them with."""
