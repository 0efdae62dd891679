"""The encoder that needs no model: TF-IDF and truncated SVD, learnt from the corpus itself.

Latent semantic analysis: Deerwester et al., 1990.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.encoders import Encoded, EncoderSpec, sample
from megatron_sbp.errors import InputError, require
from megatron_sbp.npy import open_npy, save_npy

# Most frequent words kept; the projection takes 4 x features x dimensions bytes.
_FEATURES = 1 << 16
_WORD = r"(?u)\w+"
# Below this share of its length inside the learnt subspace a direction is rounding noise.
_SMALLEST_NORM = 1e-5
_LIBRARIES_BYTES = 200 << 20  # Resident size of a process with scikit-learn.


@dataclass(kw_only=True, frozen=True)
class LexicalSpec(EncoderSpec):
    """TF-IDF and truncated SVD; see ``LexicalEncoder``."""

    dimensions: int
    """Dimensions asked for; fewer come out of a corpus with fewer documents or words."""
    fit_documents: int
    """Documents that vocabulary and components are learnt from, drawn at random."""
    seed: int
    """Of that draw and of the randomised SVD."""
    name: str = "lexical"

    @property
    def parallel(self) -> bool:
        """Counting words is Python's work, so processes share it."""
        return True

    @property
    def memory_bytes(self) -> int:
        """Libraries and projection."""
        return _LIBRARIES_BYTES + 4 * _FEATURES * self.dimensions

    def settings(self) -> dict[str, Any]:
        """The options; the corpus, which decides the rest, is an input of the stage."""
        settings = asdict(self)
        return {"encoder": self.name} | {
            key: settings[key] for key in ("dimensions", "fit_documents", "seed")
        }

    def prepare(self, corpus: Corpus, directory: Path) -> None:
        """Learn vocabulary, weights and projection from the corpus or a sample of it.

        On one thread, so that the result does not depend on their number.

        Raises:
            InputError: If no document has a word.
        """
        require("sklearn", package="scikit-learn")
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        tfidf = _vectorizer(max_features=_FEATURES)
        documents = sample(corpus, self.fit_documents, self.seed)
        try:
            matrix = tfidf.fit_transform(corpus.texts(documents))
        except ValueError:  # of scikit-learn: empty vocabulary
            raise InputError(
                f"{corpus.prefixes[0]}: no document has a word, so `lexical` has nothing to go "
                "by; choose another --encoder"
            ) from None
        with threadpool_limits(1):
            _, _, components = randomized_svd(
                matrix, min(self.dimensions, *matrix.shape), n_iter=5, random_state=self.seed
            )
        (directory / "words.json").write_text(json.dumps(tfidf.get_feature_names_out().tolist()))
        save_npy(directory / "idf.npy", tfidf.idf_)
        save_npy(directory / "projection.npy", np.ascontiguousarray(components.T))

    def open(
        self, corpus: Corpus, directory: Path, *, threads: int | None = None, gpu: int = 0
    ) -> "LexicalEncoder":
        """Read what ``prepare`` learnt."""
        return LexicalEncoder(directory)


class LexicalEncoder:
    """Rows of the TF-IDF matrix, projected onto its leading singular vectors.

    Args:
        directory: What ``LexicalSpec.prepare`` wrote.
    """

    def __init__(self, directory: Path):
        self._tfidf = _vectorizer(vocabulary=json.loads((directory / "words.json").read_text()))
        self._tfidf.idf_ = open_npy(directory / "idf.npy")
        self._projection_WD = open_npy(directory / "projection.npy")

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Vectors of the texts; zero where a text shares no word with the fitted documents."""
        vectors = self._tfidf.transform(texts) @ self._projection_WD
        vectors[np.linalg.norm(vectors, axis=1) < _SMALLEST_NORM] = 0
        return Encoded(vectors, cut=0)

    def encode_documents(self, corpus: Corpus, documents: Sequence[int]) -> Encoded:
        """Vectors of documents; see ``Encoder.encode_documents``."""
        return self.encode(list(corpus.texts(documents)))


def _vectorizer(**keywords: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(token_pattern=_WORD, sublinear_tf=True, dtype=np.float32, **keywords)
