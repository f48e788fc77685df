"""A function of another name than handle, and one that is not meant."""


def other(data, context):
    return None if data is None else ["other" for _ in data]


def handle(data, context):
    return None if data is None else ["handle" for _ in data]
