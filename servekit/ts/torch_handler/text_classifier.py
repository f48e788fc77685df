"""The handler of networks that say which class a text belongs to."""

from typing import Any

from servekit.ts.handler_utils.timer import timed
from servekit.ts.torch_handler.text_handler import TextHandler, ngrams_iterator
from servekit.ts.utils.util import PredictionException, map_class_to_label


class TextClassifier(TextHandler):
    """Answers one text with the probability of every class: {label: probability}.

    The network takes the numbers of the tokens and the offsets at which texts begin, as torch.nn.EmbeddingBag does.
    """

    ngrams = 2

    @timed
    def preprocess(self, data: Any) -> Any:
        """Return the token numbers of all texts, one after the other, and where each begins."""
        import torch

        numbers: list[int] = []
        offsets = []
        for row in data:
            offsets.append(len(numbers))
            numbers += [self.token_number(token) for token in ngrams_iterator(self._tokens_of(row), self.ngrams)]
        return torch.tensor(numbers, device=self.device), torch.tensor(offsets, device=self.device)

    def _tokens_of(self, row: Any) -> list[str]:
        text = row.get("data") or row.get("body") if isinstance(row, dict) else row
        if isinstance(text, bytes | bytearray):
            text = text.decode()
        if not isinstance(text, str):
            raise PredictionException("Send one text.", 400)
        text = self._expand_contractions(self._remove_html_tags(text).lower())
        return self._tokenize(self._remove_punctuation(self._remove_accented_characters(text)))

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the logits (texts, classes)."""
        return super().inference(*data)

    @timed
    def postprocess(self, data: Any) -> Any:
        """Return the probability of every class for each row of logits."""
        import torch

        return map_class_to_label(torch.softmax(data, dim=1).tolist(), self.mapping)

    def get_insights(self, text_preprocess: Any, _: Any, target: Any = 0) -> Any:
        """Refuse: which words count is found out with packages that the server does not have."""
        raise PredictionException("Explanations of text need the package captum, which this handler does not use.", 501)
