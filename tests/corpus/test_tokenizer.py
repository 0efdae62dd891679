"""The tokenizer against `transformers`, Megatron and the text itself."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sbp.corpus import tokenizer
from megatron_sbp.corpus.tokenizer import EOD, PAD, SEP, Tokenizer
from megatron_sbp.errors import InputError

SPECIAL = st.sampled_from([EOD, SEP, PAD, f" {EOD}", f"{EOD}{SEP}"])
TEXT = st.lists(st.text() | SPECIAL, max_size=8).map("".join)


@settings(deadline=None, max_examples=300)
@given(text=TEXT)
def test_text_comes_back_and_is_never_special(tokenizer_directory: Path, text: str) -> None:
    subject = Tokenizer(tokenizer_directory)
    ids = subject.encode(text)
    assert subject.decode(ids) == text
    assert not {subject.eod, subject.sep, subject.pad} & set(ids)
    assert subject.encode_batch([text, "x"]) == [ids, subject.encode("x")]


def test_transformers_reads_the_directory(tokenizer_directory: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(tokenizer_directory))
    ours = Tokenizer(tokenizer_directory)
    assert (theirs.bos_token, theirs.eos_token, theirs.sep_token, theirs.pad_token) == (
        EOD,
        EOD,
        SEP,
        PAD,
    )
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.sep_token_id, theirs.pad_token_id) == (
        ours.bos,
        ours.eod,
        ours.sep,
        ours.pad,
    )
    assert len(theirs) == ours.vocab_size
    for text in ("Plain text, twice  spaced .", " don't , äöü\n\n🎉"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == text


def test_megatron_reads_the_directory(tokenizer_directory: Path) -> None:
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

    arguments = Namespace(
        tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model=str(tokenizer_directory),
        chat_template=None,
        vocab_file=None,
        merge_file=None,
        special_tokens=None,
        tokenizer_hf_no_use_fast=False,
        trust_remote_code=False,
        tokenizer_hf_no_include_special_tokens=False,
        metadata_path=None,
        pad_vocab_size=False,
    )
    theirs, ours = build_tokenizer(arguments), Tokenizer(tokenizer_directory)
    assert theirs.vocab_size == ours.vocab_size
    assert (theirs.eod, theirs.bos_id, theirs.pad_id) == (ours.eod, ours.bos, ours.pad)
    assert theirs.tokenize("The quick dog") == ours.encode("The quick dog")


def test_copy_keeps_the_checksum(tokenizer_directory: Path, tmp_path: Path) -> None:
    copied = tokenizer.copy(str(tokenizer_directory), tmp_path / "copy")
    assert copied.sha256 == Tokenizer(tokenizer_directory).sha256
    assert copied.directory == tmp_path / "copy"
    assert copied.encode("The dog") == Tokenizer(tokenizer_directory).encode("The dog")


@pytest.mark.parametrize(
    ("file", "eos"),
    [
        ("tokenizer_config.json", EOD),
        ("tokenizer_config.json", {"content": EOD}),
        ("special_tokens_map.json", EOD),
    ],
    ids=["plain", "written out", "older file"],
)
def test_named_tokens_in_every_form(
    tokenizer_directory: Path, tmp_path: Path, file: str, eos: object
) -> None:
    """Without bos and pad their place is taken by eos; without sep there is none."""
    shutil.copy(tokenizer_directory / "tokenizer.json", tmp_path)
    (tmp_path / file).write_text(json.dumps({"eos_token": eos}))
    subject = Tokenizer(tmp_path)
    assert (subject.eod, subject.bos, subject.pad) == (0, 0, 0)
    assert subject.sep is None


def test_faults_are_named(tokenizer_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer(tmp_path)
    shutil.copy(tokenizer_directory / "tokenizer.json", tmp_path)
    with pytest.raises(InputError, match="names no eos_token"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: not a JSON object"):
        Tokenizer(tmp_path)
    with pytest.raises(InputError, match="--tokenizer /no/such/place: cannot be loaded"):
        tokenizer.copy("/no/such/place", tmp_path / "copy")
