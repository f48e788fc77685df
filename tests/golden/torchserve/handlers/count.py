"""Answers each request with how many it was handed together."""


def handle(data, context):
    if data is None:
        return None
    if any(row.get("body") in ("raise", b"raise") for row in data):
        raise ValueError("one of them is bad")
    return [f"{len(data)} of {context.system_properties['batch_size']}" for _ in data]
