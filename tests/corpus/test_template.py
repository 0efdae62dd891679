"""Templates, against ids put together by hand."""

from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.template import Template
from megatron_sbp.errors import InputError

BOS, EOD = 1000, 2000


def encode(text: str) -> list[int]:
    """A token per character; ``<s>`` is special."""
    head, special, tail = text.partition("<s>")
    return [*map(ord, head), *([7] if special else []), *(encode(tail) if tail else [])]


def parse(template: str, separator: str = "<s>") -> tuple[tuple[int, ...], ...]:
    made = Template.parse(template, separator, encode, bos=BOS, eod=EOD)
    return made.before, made.between, made.after


A, B, C, OPEN, CLOSE = (ord(character) for character in "abc{}")


@pytest.mark.parametrize(
    ("template", "separator", "expected"),
    [
        ("{bos}{d1}{sep}{d2}{eod}", "<s>", ((BOS,), (7,), (EOD,))),
        ("{bos}{d1}{sep}{d2}{eod}", "ab", ((BOS,), (A, B), (EOD,))),
        ("{d1}{sep}{d2}", "<s>", ((), (7,), ())),
        ("{d1}{d2}", "", ((), (), ())),
        ("a{bos}b{d1}{eod}{sep}{bos}{d2}c", "<s>", ((A, BOS, B), (EOD, 7, BOS), (C,))),
        ("{bos}a<s>b{d1}{sep}{sep}{d2}{eod}", "c", ((BOS, A, 7, B), (C, C), (EOD,))),
        ("{sep}{d1}{{a}}{sep}{d2}", "<s>", ((7,), (OPEN, A, CLOSE, 7), ())),
    ],
)
def test_parts(template: str, separator: str, expected: tuple[tuple[int, ...], ...]) -> None:
    assert parse(template, separator) == expected


@pytest.mark.parametrize(
    ("template", "continuation", "expected"),
    [
        ("{d1}{d2}{eod}", [1, 2], [1, 2]),  # an engine gives what comes before the last token
        ("{d1}{d2}abc{eod}", [1, 2, A, B, C], [1, 2]),
        ("{d1}{d2}abc{eod}", [A, B, C], []),
        ("{d1}{d2}abc{eod}", [1, 2, A, B], [1, 2, A, B]),
        ("{d1}{d2}abc{eod}", [B, C], [B, C]),
        ("{d1}{d2}", [1, 2], [1, 2]),
    ],
)
def test_the_document_of_a_continuation(
    template: str, continuation: list[int], expected: list[int]
) -> None:
    made = Template.parse(template, "<s>", encode, bos=BOS, eod=EOD)
    assert made.document(np.array(continuation)).tolist() == expected


def test_text_beside_the_separator_is_tokenized_with_it() -> None:
    seen = []

    def record(text: str) -> list[int]:
        seen.append(text)
        return [len(text)]

    made = Template.parse("x {d1}\n{sep}\n{{y}}{d2}", "--", record, bos=BOS, eod=EOD)
    assert (made.before, made.between, made.after) == ((2,), (7,), ())
    assert {"x ", "\n--\n{y}"} <= set(seen)


@pytest.mark.parametrize(
    ("template", "separator", "message"),
    [
        ("{bos}{d1}{sep}{eod}", "<s>", r"has {d2} 0 times; put each of {d1} and {d2} in once"),
        ("{d1}{d2}{d1}", "<s>", r"has {d1} 2 times"),
        ("{d2}{sep}{d1}", "<s>", r"has {d2} before {d1}; .*--sbp-direction"),
        ("{d1}{sep}{d3}", "<s>", r"a field {d3} that is not one of {bos} {d1} {sep} {d2} {eod}"),
        ("{d1!r}{sep}{d2}", "<s>", r"a field {d1} that is not one of"),
        ("{}{d1}{sep}{d2}", "<s>", r"a field {} that is not one of"),
        ("{d1}{sep{d2}", "<s>", r"double a brace that is text"),
        ("{d1}}{d2}", "<s>", r"double a brace that is text"),
        ("{d1}{sep}{d2}", "", r"separator '': has no tokens; give a token or some text"),
    ],
)
def test_what_is_wrong_is_named(template: str, separator: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(template, separator)
    assert "\n" not in str(caught.value)
    assert repr(template) in str(caught.value) or repr(separator) in str(caught.value)


def test_special_tokens_of_a_real_tokenizer(tokenizer_directory: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_directory))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    made = Template.parse("{bos}{d1}{sep}{d2}{eod}", "<|sep|>", encode, bos=0, eod=0)
    assert made == Template((0,), (1,), (0,), separator=(1,))
    other = Template.parse("{bos}{d1}<|pad|>{sep}{d2}", "<|sep|> x", encode, bos=0, eod=0)
    assert other.between == (2, 1, *encode(" x"))
