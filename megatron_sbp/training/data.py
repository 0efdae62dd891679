"""Datasets of a run, from Megatron's data arguments: documents for lm, pairs for synthesis."""

from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.training import get_tokenizer
from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.template import Template
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import FILENAME, Manifest
from megatron_sbp.training.batch import is_packed
from megatron_sbp.training.interruption import whole_indexes
from megatron_sbp.training.ledger import ledger
from megatron_sbp.training.pairs.dataset import (
    PairedDocumentDataset,
    PairedDocumentDatasetConfig,
)
from megatron_sbp.training.sources import Planned, announce


class DatasetsProvider:
    """Megatron's ``train_valid_test_datasets_provider``, which remembers the training dataset.

    Args:
        args: Megatron's arguments with the SBP group.
    """

    # Every rank builds its own part, instead of rank 0 building for all.
    is_distributed = True

    def __init__(self, args: Namespace):
        check_data_paths(args)
        self._args = args
        self._train: Any = None
        self._planned: list[Planned] = []

    def __call__(self, sizes: Sequence[int | None], vp_stage: int | None = None) -> list[Any]:
        """Build the training, validation and test datasets.

        Args:
            sizes: Least number of samples of each; None for one epoch.
            vp_stage: Virtual pipeline stage.
        """
        dataset_class: Any = GPTDataset
        config: Any = None
        if self._args.sbp_objective == "synthesis":
            dataset_class, config = PairedDocumentDataset, paired_config(self._args)
        else:
            config = gpt_config(self._args)
            if self._args.object_storage_cache_path is None:  # sizes are those of local files
                self._planned = announce(self._args)
        built_here = partial(_is_built_here, self._args, vp_stage)
        builder = BlendedMegatronDatasetBuilder(dataset_class, sizes, built_here, config)
        with whole_indexes(self._args.data_cache_path):
            datasets = builder.build()
        if datasets[0] is not None:
            self._train = datasets[0]
        return datasets

    def ledger(self) -> list[dict[str, Any]] | None:
        """What the run read of each source; None on ranks that read no data."""
        if self._train is None:
            return None
        args = self._args
        consumed, synthetic = args.consumed_train_samples, args.sbp_synthetic_data
        return ledger(self._train, consumed, synthetic, self._planned)


def _is_built_here(args: Namespace, vp_stage: int | None) -> bool:
    """Whether ``batch.get_batch`` reads data on this rank."""
    reads = is_packed(args) or is_first_or_last_pipeline_stage(vp_stage)
    return mpu.get_tensor_model_parallel_rank() == 0 and reads


def check_data_paths(args: Namespace) -> None:
    """Open every data path and compare its tokenizer with the run's before anything is built.

    A corpus without a manifest (made by Megatron's own tools) is left to Megatron, except for
    pairs.

    Raises:
        InputError: If a file is missing, damaged, or made with another tokenizer, or a path is said
            to be synthetic that is none of the run's.
    """
    paths = data_paths(args)
    for prefix in args.sbp_synthetic_data:
        if prefix not in paths:
            raise InputError(
                f"--sbp-synthetic-data {prefix}: is not one of the data paths "
                f"({', '.join(paths)}); write it as it is written there"
            )
    for prefix in paths:
        if args.sbp_objective == "synthesis" or (Path(prefix).parent / FILENAME).exists():
            corpus = Corpus([prefix], tokenizer=args.tokenizer_model)
            if args.tokenizer_model is not None and Path(args.tokenizer_model).is_dir():
                _ = corpus.tokenizer  # compares checksums of the vocabularies
                _check_tokenizer_files(Path(args.tokenizer_model), Path(prefix).parent)


def _check_tokenizer_files(tokenizer: Path, box: Path) -> None:
    """Compare all of a tokenizer that lies in a corpus with what the stage wrote that made it."""
    if tokenizer.parent.resolve() == box.resolve() and (box / FILENAME).exists():
        Manifest.read(box).verify(box, below=f"{tokenizer.name}/", trust_times=True)


def data_paths(args: Namespace) -> list[str]:
    """Every prefix that the run reads, each once."""
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    blends = [blend, *(blend_per_split or [])]
    return list(dict.fromkeys(prefix for one in blends if one is not None for prefix in one[0]))


def _common(args: Namespace) -> dict[str, Any]:
    """Fields of ``BlendedMegatronDatasetConfig`` from Megatron's arguments."""
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    if blend is None and blend_per_split is None:
        raise InputError("no data: give --data-path, or --train-data-path and --valid-data-path")
    return {
        "random_seed": args.seed,
        "sequence_length": args.seq_length,
        "blend": blend,
        "blend_per_split": blend_per_split,
        "split": args.split,
        "multiple_validation_sets": args.multiple_validation_sets,
        "full_validation": args.full_validation,
        "num_dataset_builder_threads": args.num_dataset_builder_threads,
        "path_to_cache": args.data_cache_path,
        "mmap_bin_files": args.mmap_bin_files,
        "tokenizer": get_tokenizer(),
        "mid_level_dataset_surplus": args.mid_level_dataset_surplus,
        "allow_ambiguous_pad_tokens": args.allow_ambiguous_pad_tokens,
        "fast_cache_load": args.dataloader_fast_cache_load,
        "defer_npy_index_mmap": args.dataloader_defer_npy_index_mmap,
    }


def gpt_config(args: Namespace) -> GPTDatasetConfig:
    """Megatron's own configuration for documents, as its GPT script makes it."""
    return GPTDatasetConfig(
        **_common(args),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        inter_document_masking=args.dataloader_inter_document_masking,
        object_storage_cache_path=args.object_storage_cache_path,
    )


def paired_config(args: Namespace) -> PairedDocumentDatasetConfig:
    """Configuration for pairs; a tokenizer without bos or pad lends eod for it."""
    tokenizer = get_tokenizer()
    eod = tokenizer.eod
    template = Template.parse(
        args.sbp_template,
        args.sbp_separator,
        tokenizer.tokenize,
        bos=_token(tokenizer, "bos", eod),
        eod=eod,
    )
    return PairedDocumentDatasetConfig(
        **_common(args),
        pairs=tuple(args.sbp_pairs),
        before=template.before,
        separator=template.separator,
        between=template.between,
        after=template.after,
        eod=eod,
        pad=_token(tokenizer, "pad", eod),
        context_documents=args.sbp_context_documents,
        direction=args.sbp_direction,
        packing=args.sbp_packing,
        overflow=args.sbp_overflow,
        truncate_d1=args.sbp_truncate_d1,
        d1_share=args.sbp_d1_share,
        min_d2=args.sbp_min_d2,
        multiple=args.sbp_segment_multiple,
    )


def special_token(tokenizer: Any, name: str) -> int | None:
    """A special token's id, None where Megatron's tokenizer has none."""
    try:
        token = getattr(tokenizer, name)
    except (AttributeError, NotImplementedError):  # how Megatron's tokenizers say so
        return None
    # Megatron's NullTokenizer says -1.
    return None if token is None or token < 0 else int(token)


def _token(tokenizer: Any, name: str, default: int) -> int:
    token = special_token(tokenizer, name)
    return default if token is None else token
