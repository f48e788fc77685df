"""Answers with what it was given: fields, their types, and what the context says of the request."""

ASKED = ("url_path", "explain", "describe", "Content-Type", "content-type", "X-Custom", "x-custom", "Authorization")


def handle(data, context):
    if data is None:
        return None
    return [seen(row, index, context) for index, row in enumerate(data)]


def seen(row, index, context):
    return {
        "fields": {name: [type(value).__name__, shown(value)] for name, value in sorted(row.items())},
        "parameters": {name: context.get_request_header(index, name) for name in sorted(row)},
        "headers": {name: context.get_request_header(index, name) for name in ASKED},
        "properties": sorted(context.system_properties),
        "manifest": context.manifest["model"].get("modelName"),
    }


def shown(value):
    return bytes(value).decode("latin-1") if isinstance(value, (bytes, bytearray)) else value
