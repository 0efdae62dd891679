"""Worker processes that end with the process that started them, however that ends."""

import os
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from typing import Any

_grips: list[Connection] = []  # of managers, until this process ends


def hold(lifeline: Connection) -> None:
    """End this process when the other end of its lifeline closes: called at a worker's start.

    Args:
        lifeline: The reading end of a pipe whose writing end the parent alone has.
    """
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def hold_managers() -> None:
    """Have the process of every ``multiprocessing.Manager`` that is started end with this one.

    Megatron writes checkpoints with one, which would outlive a run that is killed for ever.
    """
    start = BaseManager.start

    def start_held(
        self: BaseManager,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        line, grip = Pipe(duplex=False)
        _grips.append(grip)
        start(self, _begin_manager, (line, initializer, initargs))

    BaseManager.start = start_held  # type: ignore[method-assign, assignment]


def _begin_manager(
    line: Connection, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    hold(line)
    if initializer is not None:
        initializer(*initargs)


def _watch(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)
