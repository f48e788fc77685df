"""The handler that others derive from: it hands the tensors through as they are."""

from servekit.signature import Signature
from servekit.spec import ModelSpec
from servekit.tensors import Tensors


class Handler:
    """Turns what a client sent into the network's inputs, and the network's outputs into an answer.

    Made once a worker and called from many threads, so it keeps nothing between calls. Both methods keep the rows:
    row i of what they return belongs to row i of what they got.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Prepare for the model that `spec` describes; a subclass may take the spec's `options` as keywords."""
        self.spec = spec

    @property
    def signature(self) -> Signature:
        """What clients send and get: here what the network takes and gives. Say so if yours takes or gives other things."""
        labels = {self.spec.outputs[0].name: self.spec.labels} if self.spec.labels else {}
        return Signature(self.spec.inputs, self.spec.outputs, labels=labels)

    def preprocess(self, tensors: Tensors) -> Tensors:
        """Return the network's inputs; raise InvalidInput, before any batch is formed, for what cannot be read."""
        return tensors

    def postprocess(self, tensors: Tensors) -> Tensors:
        """Return the answer made of the network's outputs."""
        return tensors
