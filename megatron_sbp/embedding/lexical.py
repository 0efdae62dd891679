"""The encoder that needs no model: TF-IDF and truncated SVD, learnt from the corpus itself.

Latent semantic analysis: Deerwester et al., 1990.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.encoders import Encoded
from megatron_sbp.errors import InputError, require

_FEATURES = (
    1 << 16
)  # Most frequent words kept; the components take 4 x features x dimensions bytes.
_WORD = r"(?u)\w+"
# Below this share of its length inside the learnt subspace a direction is rounding noise.
_SMALLEST_NORM = 1e-5


@dataclass(kw_only=True, frozen=True)
class LexicalSpec:
    """TF-IDF and truncated SVD; see ``LexicalEncoder``."""

    dimensions: int
    """Dimensions asked for; fewer come out of a corpus with fewer documents or words."""
    fit_documents: int
    """Documents that vocabulary and components are learnt from, drawn at random."""
    seed: int
    """Of that draw and of the randomised SVD."""
    name: str = "lexical"
    parallel: bool = False
    memory_bytes: int = 0

    def settings(self) -> dict[str, Any]:
        """The options; the corpus, which decides the rest, is an input of the stage."""
        settings = asdict(self)
        return {"encoder": self.name} | {
            key: settings[key] for key in ("dimensions", "fit_documents", "seed")
        }

    def load(self, corpus: Corpus, threads: int | None = None) -> "LexicalEncoder":
        """Fit to the corpus or a sample of it."""
        return LexicalEncoder(self, corpus)


class LexicalEncoder:
    """Rows of the TF-IDF matrix, projected onto its leading singular vectors.

    Args:
        spec: Options.
        corpus: What it is fitted to: at most ``spec.fit_documents`` of its documents.

    Raises:
        InputError: If no document has a word.
    """

    def __init__(self, spec: LexicalSpec, corpus: Corpus):
        require("sklearn", package="scikit-learn")
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        sample = np.arange(len(corpus))
        if len(sample) > spec.fit_documents:
            draw = np.random.default_rng(spec.seed)
            sample = np.sort(draw.choice(len(corpus), spec.fit_documents, replace=False))
        self._tfidf = TfidfVectorizer(
            token_pattern=_WORD, sublinear_tf=True, max_features=_FEATURES, dtype=np.float32
        )
        try:
            matrix = self._tfidf.fit_transform(corpus.texts(sample.tolist()))
        except ValueError:  # of scikit-learn: empty vocabulary
            raise InputError(
                f"{corpus.prefixes[0]}: no document has a word, so `lexical` has nothing to go "
                "by; choose another --encoder"
            ) from None
        _, _, self._components = randomized_svd(
            matrix, min(spec.dimensions, *matrix.shape), n_iter=5, random_state=spec.seed
        )

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Vectors of the texts; zero where a text shares no word with the fitted documents."""
        vectors = self._tfidf.transform(texts) @ self._components.T
        vectors[np.linalg.norm(vectors, axis=1) < _SMALLEST_NORM] = 0
        return Encoded(vectors, cut=0)
