"""Two classes, so that nobody can tell which is meant."""


class First:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return ["first" for _ in data]


class Second(First):
    def handle(self, data, context):
        return ["second" for _ in data]
