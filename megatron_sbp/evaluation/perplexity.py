"""Negative log-likelihood of documents under a Megatron checkpoint, through Megatron itself.

Every rank has its part of the model. The ranks of one model work on the same batches in step, as
Megatron's schedules drive them in an evaluation; models beside each other (data parallelism) take
the batches in turn. A rank that gets the losses of a batch appends them to a file of its own, from
which rank 0 puts them in the order of the documents: sums do not depend on batches or ranks.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.evaluation.perplexity_windows import Windows
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.npy import create_npy
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis import model as models
from megatron_sbp.synthesis.engine import EngineOptions

# Micro-batches of a pipeline stage between two of its pauses: few enough to report progress.
_MICRO_BATCHES = 8
_NONE = np.empty(0, np.float32)


class Plan:
    """What is read of a corpus, in which batches.

    Args:
        corpus: The documents.
        context: Most tokens that the model reads at once.
        stride: Tokens that every window after a document's first one scores.
        batch_tokens: Most tokens of a batch, padding included.
        alone: Whether a document is read by itself, not after an end-of-document token.
    """

    def __init__(self, corpus: Corpus, context: int, stride: int, batch_tokens: int, alone: bool):
        self.corpus, self.context = corpus, context
        lengths = corpus.lengths_of(np.arange(len(corpus)))
        self.begins = np.cumsum(lengths) - lengths
        """int64 [documents], tokens of all documents before each."""
        self.given = int(alone)
        """First tokens of every document that are not predicted."""
        self.lengths = np.maximum(lengths - self.given, 0)
        """int64 [documents], tokens of each that are scored."""
        self.windows = Windows.cut(lengths, context, stride, self.given)
        self.batches = list(self.windows.batches(batch_tokens))
        """Numbers of windows, int64 [rows] each."""

    def rows(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the model is given and what it has to predict.

        Args:
            batch: Numbers of windows, int64 [rows].

        Returns:
            int64 [rows, tokens] twice, filled up with end-of-document tokens.
        """
        windows, eod = self.windows, self.corpus.tokenizer.eod
        shape = len(batch), int(windows.length[batch].max())
        given, wanted = np.full(shape, eod), np.full(shape, eod)
        for row, window in enumerate(batch):
            begin, length = int(windows.start[window]), int(windows.length[window])
            tokens = self.corpus.tokens(int(windows.document[window]))[: begin + length]
            wanted[row, :length] = tokens[begin:]
            given[row, 1:length] = tokens[begin:-1]
            if begin:
                given[row, 0] = tokens[begin - 1]
        return given, wanted

    def scored(self, batch: np.ndarray) -> np.ndarray:
        """Which of a batch's tokens are scored, bool [rows, tokens]."""
        length, skip = self.windows.length[batch, None], self.windows.skip[batch, None]
        place = np.arange(length.max())
        return (place >= skip) & (place < length)


class Scorer:
    """A checkpoint, loaded on all ranks.

    Args:
        checkpoint: The model, saved with any tensor and pipeline parallelism.
        options: Type and parallelism.
        ranks: All ranks of the run; those of one model follow each other.
        vocab_size: Number of ids of the tokenizer; others, which pad the vocabulary, have no
            probability.

    Raises:
        InputError: If the model cannot be built so.
    """

    def __init__(
        self,
        checkpoint: MegatronCheckpoint,
        options: EngineOptions,
        ranks: Ranks,
        vocab_size: int,
    ):
        import torch

        torch.set_num_threads(ranks.cores)
        self._device, self._vocab_size = models.choose_device(options, ranks), vocab_size
        with warnings.catch_warnings(action="ignore"):  # It warns of all that is not installed.
            models.prepare_megatron(self._device)
            from megatron.core import parallel_state

            from megatron_sbp.synthesis import megatron_model

            megatron_model.start(options, ranks, self._device)
            self._model = megatron_model.build(checkpoint, options, self._device)
        self._model.config.variable_seq_lengths = True  # between the stages of a pipeline
        self._tensor_rank = parallel_state.get_tensor_model_parallel_rank()
        self._last = parallel_state.is_pipeline_last_stage()
        self.number: int = parallel_state.get_data_parallel_rank()
        """Number of this rank's model among those beside each other."""
        self.models: int = parallel_state.get_data_parallel_world_size()
        """How many there are."""
        self.gives: bool = self._last and self._tensor_rank == 0
        """Whether this rank of the model gives its losses."""

    def losses(self, plan: Plan) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Negative log-likelihood of the scored tokens of every batch that falls to this model.

        Yields:
            The batch, and float32 [scored tokens] in the order of ``Windows.places``, or none of
            them on a rank that does not give them.
        """
        for some in batched(plan.batches[self.number :: self.models], _MICRO_BATCHES):
            losses = self._evaluate(plan, some)
            for place, batch in enumerate(some):
                yield batch, losses[place][plan.scored(batch)] if self.gives else _NONE

    def _evaluate(self, plan: Plan, batches: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Run micro-batches through Megatron's schedule.

        Returns:
            float32 [rows, tokens] each; nothing on a rank of an earlier pipeline stage.
        """
        import torch
        from megatron.core.pipeline_parallel import get_forward_backward_func

        with torch.no_grad():
            losses = get_forward_backward_func()(
                forward_step_func=self._step,
                data_iterator=iter([plan.rows(batch) for batch in batches]),
                model=[self._model],
                num_microbatches=len(batches),
                seq_length=plan.context,  # these two are of no use where the lengths vary
                micro_batch_size=1,
                forward_only=True,
                collect_non_loss_data=True,
            )
        return [part.cpu().numpy() for part in losses]

    def _step(self, batches: Iterator[tuple[np.ndarray, np.ndarray]], model: Any) -> Any:
        """The forward step of a micro-batch, as Megatron's schedules take it."""
        import torch

        given, wanted = (torch.from_numpy(part).to(self._device) for part in next(batches))
        positions = torch.arange(given.shape[1], device=self._device).expand_as(given)
        output = model(given, positions, None)

        def loss(logits: torch.Tensor, non_loss_data: bool) -> torch.Tensor:
            from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

            first = self._tensor_rank * logits.shape[-1]
            logits[..., max(0, self._vocab_size - first) :] = -math.inf
            return vocab_parallel_cross_entropy(logits, wanted)

        return output, loss


def score(scorer: Scorer, plan: Plan, directory: Path, ranks: Ranks, title: str) -> None:
    """Write this rank's losses into a file of its model, if it gives them.

    Args:
        scorer: The model.
        plan: What is read.
        directory: Where ``collect`` finds the files of all models.
        ranks: All ranks of the run.
        title: What the progress is called.
    """
    total, first = int(plan.lengths.sum()), ranks.rank == 0
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(title, total, "tokens")) if first else None
        path = directory / _file(scorer.number)
        file = stack.enter_context(open(path, "wb")) if scorer.gives else None
        for batch, losses in scorer.losses(plan):
            ranks.check()
            if file is not None:
                file.write(losses.tobytes())
            if progress is not None:  # The models advance alike.
                step = int(plan.scored(batch).sum()) * scorer.models
                progress.update(min(step, total - progress.done))


def collect(plan: Plan, directory: Path, models: int, path: Path) -> np.ndarray:
    """Put the losses that the models wrote in the order of the documents.

    Args:
        plan: What was read.
        directory: Where ``score`` wrote them.
        models: How many models there were.
        path: Where to write them, float32 [tokens], nan for a token that was given.

    Returns:
        float64 [documents], the sum of each.
    """
    losses = create_npy(path, np.float32, plan.corpus.num_tokens)
    losses[:] = np.nan
    for number in range(models):
        given = np.memmap(directory / _file(number), np.float32, mode="r")
        begin = 0
        for batch in plan.batches[number::models]:
            places = plan.windows.places(batch, plan.begins)
            losses[places] = given[begin : begin + len(places)]
            begin += len(places)
    losses.flush()
    sums, some = np.zeros(len(plan.lengths)), plan.lengths > 0
    first = plan.begins[some] + plan.given
    # From each first token to its end, and, not wanted, from there to the next first token.
    bounds = np.stack([first, first + plan.lengths[some]], axis=1).ravel()
    bounds = bounds[bounds < len(losses)]
    sums[some] = np.add.reduceat(losses, bounds, dtype=np.float64)[::2]
    return sums


def _file(number: int) -> str:
    return f"losses-{number}.f32"
