"""A class whose handle names its arguments the other way round: they are given by place."""


class Swapped:
    def initialize(self, properties):
        self.properties = properties

    def handle(self, ctx, data):
        return [type(ctx).__name__ for _ in ctx]
