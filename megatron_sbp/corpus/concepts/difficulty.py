"""How hard a concepts corpus is: the sizes of its world and of its grammar."""

from dataclasses import dataclass, field
from math import perm

from megatron_sbp.corpus.concepts.words import (
    FRAMES,
    LONG_NAMES,
    NOUNS,
    OPENINGS,
    SYLLABLES,
    VALUE_WORDS,
)
from megatron_sbp.errors import InputError

_MOST_NUMBERED = 1 << 62  # documents and names are numbered in 64 bits


@dataclass(kw_only=True, slots=True)
class Difficulty:
    """What decides the concepts and every document about them."""

    concepts: int = field(default=400, metadata={"metavar": "CONCEPTS"})
    """Latent concepts: towns, each with a name and a value of every attribute."""
    attributes: int = field(default=8, metadata={"metavar": "ATTRIBUTES"})
    """Attributes of a concept."""
    values: int = field(default=32, metadata={"metavar": "VALUES"})
    """Values that an attribute may have, all equally likely; no two attributes share one."""
    told: int = field(default=4, metadata={"metavar": "ATTRIBUTES"})
    """Attributes that a document tells, drawn at random and in random order."""
    restated: int = field(default=0, metadata={"metavar": "ATTRIBUTES"})
    """Of these, attributes that it tells again at its end, with the name, in random order and
    wording: what a model learns to copy from."""
    wordings: int = field(default=4, metadata={"metavar": "WORDINGS"})
    """Ways to word a statement, drawn for every statement."""
    styles: int = field(default=4, metadata={"metavar": "STYLES"})
    """Ways to open a document and to join its statements, drawn for every document."""
    name_tokens: int = field(default=1, metadata={"metavar": "TOKENS"})
    """Tokens of a name; with 1 every name is a token of its own."""
    name_syllables: int = field(default=32, metadata={"metavar": "SYLLABLES"})
    """Syllables that names of several tokens are made of, each a token."""
    unnamed_share: float = field(default=0.0, metadata={"metavar": "SHARE"})
    """Share of the documents, 0 to 1, that do not name their concept."""
    seed: int = 0
    """Decides the concepts and the documents."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("concepts", 1, LONG_NAMES),
            ("attributes", 1, len(NOUNS)),
            ("values", 2, VALUE_WORDS // max(self.attributes, 1)),
            ("told", 1, self.attributes),
            ("restated", 0, self.told),
            ("wordings", 1, len(FRAMES)),
            ("styles", 1, len(OPENINGS)),
            ("name_tokens", 1, 8),
            ("name_syllables", 2, SYLLABLES),
            ("seed", 0, 2**63 - 1),
        ):
            value, flag = getattr(self, name), "--" + name.replace("_", "-")
            if not least <= value <= most:
                raise InputError(f"{flag} {value}: must be from {least} to {most}")
        if not 0 <= self.unnamed_share <= 1:
            raise InputError(f"--unnamed-share {self.unnamed_share}: must be from 0 to 1")
        if self.names < self.concepts:
            raise InputError(
                f"--name-tokens {self.name_tokens} --name-syllables {self.name_syllables}: give "
                f"{self.names:,} names, but there are {self.concepts:,} concepts; raise one of them"
            )
        if max(self.names, self.documents) > _MOST_NUMBERED:
            raise InputError(
                f"--name-syllables {self.name_syllables}, --told {self.told}, --wordings "
                f"{self.wordings}: more than 2^62 names, or documents of a concept, cannot be "
                "numbered; lower one of them"
            )

    @property
    def first_parts(self) -> int:
        """Different tokens that a name may begin with."""
        return self.concepts if self.name_tokens == 1 else self.name_syllables

    @property
    def names(self) -> int:
        """Names that there could be."""
        return int(self.first_parts**self.name_tokens)

    @property
    def documents(self) -> int:
        """Different documents that there are about one concept."""
        told = perm(self.attributes, self.told) * perm(self.told, self.restated)
        return self.styles * told * self.wordings**self.statements

    @property
    def statements(self) -> int:
        """Statements of a document."""
        return self.told + self.restated
