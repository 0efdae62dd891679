"""Metrics of a training run: lines of JSON beside the checkpoints, written and read."""

import json
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError
from megatron_sbp.files import check_regular

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
        _drop_torn_line(path)
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


def _drop_torn_line(path: Path) -> None:
    """Cut off the last line if a full disk has cut it short."""
    if path.exists():
        content = path.read_bytes()
        with open(path, "r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def read_metrics(directory: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Metrics of a training run: name -> (iteration, value), by iteration.

    A run without metrics has none.

    Raises:
        InputError: Naming the line that is not one of a metrics file.
    """
    path = Path(directory) / FILENAME
    try:
        check_regular(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; remove it") from None
    series: dict[str, dict[int, float]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            name, iteration, value = _entry(line)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{path} line {number}: not a metric ({error!r:.200}); remove the line"
            ) from None
        series.setdefault(name, {})[iteration] = value
    return {name: sorted(values.items()) for name, values in series.items()}


def _entry(line: bytes) -> tuple[str, int, float]:
    """Metric, iteration and value of a line."""
    entry = json.loads(line)
    name, iteration, value = entry["metric"], entry["iteration"], entry["value"]
    if not isinstance(name, str) or type(iteration) is not int or iteration < 0:
        raise ValueError(f"{name!r} at iteration {iteration!r}")
    if type(value) not in (int, float):
        raise ValueError(f"value {value!r}")
    return name, iteration, float(value)
