"""Answers with the version of the model that it was loaded for."""


class Versioned:
    def initialize(self, context):
        self.version = context.manifest["model"]["modelVersion"]

    def handle(self, data, context):
        return [self.version for _ in data]
