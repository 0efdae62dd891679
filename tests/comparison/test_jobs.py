"""Jobs begin when what they need is done, a few at a time, and none after an error."""

import random
import threading

import pytest

from megatron_sbp.comparison.jobs import run_all

SEED = random.randrange(1 << 30)


@pytest.mark.parametrize("at_a_time", [1, 2, 5])
def test_jobs_wait_for_what_they_need(at_a_time: int) -> None:
    draw = random.Random(SEED)
    names = [f"job{number}" for number in range(60)]
    needs = {
        name: draw.sample(names[:place], min(place, draw.randint(0, 3)))
        for place, name in enumerate(names)
    }
    lock, most = threading.Lock(), 0
    done: list[str] = []
    at_work: set[str] = set()

    def work(name: str) -> bool:
        nonlocal most
        with lock:
            at_work.add(name)
            most = max(most, len(at_work))
            assert set(needs[name]) <= set(done), SEED
        with lock:
            at_work.remove(name)
            done.append(name)
        return True

    run_all(needs, work, at_a_time)
    assert sorted(done) == sorted(names) and most <= at_a_time, SEED


def test_those_that_do_not_need_each_other_run_side_by_side() -> None:
    together = threading.Barrier(3, timeout=60)  # which is passed by three at once
    run_all({"a": [], "b": [], "c": []}, lambda name: together.wait() >= 0, 3)


def test_of_those_that_may_run_the_first_one_begins() -> None:
    begun: list[str] = []

    def work(name: str) -> bool:
        begun.append(name)
        return True

    run_all({"c": [], "b": ["a"], "a": [], "d": []}, work, 1)
    assert begun == ["c", "a", "b", "d"]


def test_after_an_error_those_at_work_end_and_no_other_begins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed, ended = threading.Event(), []

    def work(name: str) -> bool:
        if name == "fails":
            failed.set()
            raise ValueError("the reason")
        failed.wait(60)
        ended.append(name)
        return True

    needs: dict[str, list[str]] = {"beside": [], "fails": [], "next": [], "needs it": ["fails"]}
    with pytest.raises(ValueError, match="the reason"):
        run_all(needs, work, 2)
    assert ended == ["beside"]
    assert "fails: failed after" in capsys.readouterr().err
