"""A function and a class, either of which could serve; the function counts how often it was called to begin."""

BEGUN = []


class Service:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return ["class" for _ in data]


def handle(data, context):
    if data is None:
        BEGUN.append(1)
        return None
    return [f"function, begun {len(BEGUN)} time" for _ in data]
