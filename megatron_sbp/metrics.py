"""Metrics of a training run: lines of JSON beside the checkpoints, written and read."""

import json
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError

FILENAME = "metrics.jsonl"


class MetricsWriter:
    """Megatron's TensorBoard writer, writing lines of JSON, and passing on to a real one if given.

    A resumed run appends: of two lines with the same iteration and metric the later one counts.

    Args:
        directory: Where ``metrics.jsonl`` lies or will lie.
        tensorboard: A ``SummaryWriter`` to pass everything on to, or None.
    """

    def __init__(self, directory: str | Path, tensorboard: Any = None):
        path = Path(directory) / FILENAME
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a")  # noqa: SIM115 (open as long as the run)
        self._tensorboard = tensorboard

    def add_scalar(self, name: str, value: Any, step: int) -> None:
        """Write one value. Megatron's duplicates by sample count are left out."""
        if not name.endswith("vs samples"):
            line = {"iteration": int(step), "metric": name, "value": float(value)}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            self._tensorboard.add_scalar(name, value, step)

    def __getattr__(self, name: str) -> Any:
        """Everything that is not a scalar (text, histograms) goes to TensorBoard or nowhere."""
        if self._tensorboard is not None:
            return getattr(self._tensorboard, name)
        return lambda *args, **kwargs: None


def read_metrics(directory: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Metrics of a training run: name -> (iteration, value), by iteration.

    A run without metrics has none.

    Raises:
        InputError: Naming the line that is not one of a metrics file.
    """
    path = Path(directory) / FILENAME
    if not path.exists():
        return {}
    series: dict[str, dict[int, float]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            entry = json.loads(line)
            series.setdefault(entry["metric"], {})[int(entry["iteration"])] = float(entry["value"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} line {number}: not a metric ({error!r}); remove the line"
            ) from None
    return {name: sorted(values.items()) for name, values in series.items()}
