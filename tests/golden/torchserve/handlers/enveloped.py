"""Behind an envelope: answers with each thing that the envelope took out, twice."""


def handle(data, context):
    if data is None:
        return None
    return [twice(row) for row in data]


def twice(row):
    if isinstance(row, (bytes, bytearray)):
        row = bytes(row).decode("latin-1")
    return {"got": type(row).__name__, "twice": [row, row]} if isinstance(row, dict) else [row, row]
