"""The handler of models that read text: a vocabulary, and what is done to text before it is looked up there."""

import abc
import os
import pickle
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from servekit.ts.torch_handler.base_handler import BaseHandler
from servekit.ts.torch_handler.contractions import CONTRACTION_MAP
from servekit.ts.utils.util import CLEANUP_REGEX

_CONTRACTIONS = re.compile("|".join(map(re.escape, sorted(CONTRACTION_MAP, key=len, reverse=True))), re.IGNORECASE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextHandler(BaseHandler, abc.ABC):
    """Loads `source_vocab.pt` beside the model: token -> number."""

    def __init__(self) -> None:
        """Begin without a model; `initialize` loads it."""
        super().__init__()
        self.source_vocab: Any = None
        self.tokenizer: Callable[[str], list[str]] = str.split
        self.input_text: str | None = None
        self.lig: Any = None

    def initialize(self, context: Any) -> None:
        """Load model and vocabulary; raise RuntimeError if it is missing, or needs a package to be read."""
        import torch

        super().initialize(context)
        self.initialized = False
        path = self.get_source_vocab_path(context)
        try:
            self.source_vocab = torch.load(path, weights_only=True)
        except pickle.UnpicklingError as error:
            raise RuntimeError(
                f"{os.path.basename(path)} is no plain dict of tokens and numbers: a vocabulary of torchtext needs that "
                "package, which is not installed on the server; save dict(vocab.get_stoi()) instead."
            ) from error
        self.initialized = True

    def get_source_vocab_path(self, ctx: Any) -> str:
        """Return where the vocabulary is; raise RuntimeError if the archive has none."""
        folder = str(ctx.system_properties.get("model_dir"))
        path = os.path.join(folder, self.manifest["model"].get("sourceVocab") or "source_vocab.pt")
        if not os.path.isfile(path):
            raise RuntimeError("The archive has no source_vocab.pt; add it with --extra-files.")
        return path

    def token_number(self, token: str) -> int:
        """Return the number of `token`; that of "<unk>", or 0 without one, for those that the vocabulary lacks."""
        vocabulary = self.source_vocab
        if isinstance(vocabulary, dict):
            vocabulary = {"<unk>": 0} | vocabulary
            return int(vocabulary.get(token, vocabulary["<unk>"]))
        return int(vocabulary[token])

    def _expand_contractions(self, text: str) -> str:
        def expand(match: re.Match[str]) -> str:
            return match[0][0] + CONTRACTION_MAP[match[0].lower()][1:]

        return _CONTRACTIONS.sub(expand, text).replace("'", "")

    def _remove_accented_characters(self, text: str) -> str:
        return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()

    def _remove_html_tags(self, text: str) -> str:
        return CLEANUP_REGEX.sub("", text)

    def _remove_punctuation(self, text: str) -> str:
        return text.translate(_PUNCTUATION)

    def _remove_puncutation(self, text: str) -> str:
        """Do the same under the name that TorchServe once misspelled."""
        return self._remove_punctuation(text)

    def _tokenize(self, text: str) -> list[str]:
        return self.tokenizer(text.lower())

    def get_word_token(self, input_tokens: Sequence[str]) -> list[str]:
        """Return the tokens without the sign that some tokenizers put for a space."""
        return [token.replace("\u0120", "") for token in input_tokens]

    def summarize_attributions(self, attributions: Any) -> Any:
        """Return how much each token counts, of attributions that have several numbers a token."""
        import torch

        attributions = torch.softmax(attributions, dim=-1)
        return attributions / torch.linalg.norm(attributions.sum(dim=-1))


def ngrams_iterator(token_list: Sequence[str], ngrams: int) -> Iterator[str]:
    """Give the tokens, then each pair of neighbours, and so on up to `ngrams` of them, joined by spaces."""
    for count in range(1, ngrams + 1):
        for start in range(len(token_list) - count + 1):
            yield " ".join(token_list[start : start + count])
