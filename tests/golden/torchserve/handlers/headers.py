"""Answers with every header that the context has for the request."""


def handle(data, context):
    if data is None:
        return None
    return [dict(sorted(context.get_all_request_header(index).items())) for index in range(len(data))]
