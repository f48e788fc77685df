"""The handlers that archives name or derive from."""
