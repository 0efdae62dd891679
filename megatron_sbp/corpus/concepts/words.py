"""The words of the concepts corpus: sentences with slots, and invented names.

A document opens with a sentence that names its town (or says that it is a town), and tells some of
its attributes, one statement each:

    Here is Talvorkin. Its river is Kelar. People call the school Dovun.
"""

import re

NOUNS = (
    "river harbour temple mayor bridge tavern school patron festival market theatre founder "
    "rival hill lake forest square tower dish wine song museum library garden"
).split()
"""Names of the attributes."""

# The first word of a sentence says which sentence it is, and the noun comes before its value, so
# that every choice shows in one token: the exact probabilities of corpus/concepts/floor.py need it.
FRAMES = (
    " Its {noun} is {value}.",
    " The {noun} there is {value}.",
    " People call the {noun} {value}.",
    " Everybody knows the {noun} {value}.",
    " Ask for the {noun} {value}.",
    " You will like the {noun} {value}.",
    " Nobody forgets the {noun} {value}.",
    " Old books name the {noun} {value}.",
)
"""Wordings of a statement."""

OPENINGS = (
    ("Here is {name}.", ""),
    ("A note about {name}:", "\n-"),
    ("We went to {name}.", ""),
    ("From the records of {name}:", "\n*"),
    ("Dear friend, this is {name}.", ""),
    ("My home is {name}.", "\n+"),
    ("Let me describe {name}.", ""),
    ("Have you seen {name}?", "\n="),
)
"""Styles: how a document opens, and what stands before each of its statements."""

RECAP = " Once more about {name}:"
"""What stands before the statements that are told again."""

UNNAMED = " a town"
"""What stands in place of " {name}" where a document does not name its concept."""

PIECE = re.compile(r" ?\{\w+\}|\n[-*+=]| ?\w+|[^\w\s]")
"""A token of these sentences, or a slot."""

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
SYLLABLES = len(_CONSONANTS) ** 2 * len(_VOWELS)
"""Syllables that there are."""
VALUE_WORDS = SYLLABLES * len(_CONSONANTS) * len(_VOWELS)
"""Words for values that there are."""
LONG_NAMES = SYLLABLES**2
"""Names of one token that there are."""


# Shapes are different, so that no word begins with another one: with C for a consonant and V for a
# vowel, a name is CVC CVC ..., a value CVCVC. Steps without a common divisor with the number of
# words make neighbours differ; which words there are must not depend on any seed.


def syllable(number: int) -> str:
    """A syllable of a name, CVC."""
    return _spell("CVC", number * 611 % SYLLABLES)


def value_word(number: int) -> str:
    """The word for a value, with a capital letter."""
    return _spell("CVCVC", number * 42_433 % VALUE_WORDS).capitalize()


def long_name(number: int) -> str:
    """A name that is one token, with a capital letter."""
    return _spell("CVCCVC", number * 594_233 % LONG_NAMES).capitalize()


def _spell(shape: str, number: int) -> str:
    letters = ""
    for kind in shape:
        choices = _CONSONANTS if kind == "C" else _VOWELS
        number, digit = divmod(number, len(choices))
        letters += choices[digit]
    return letters
