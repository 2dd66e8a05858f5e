"""Progress of stages, and of one stage alone."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from converter.system.progress import counted, one_at_a_time, stage_of


def test_a_stage_is_told_under_its_name_as_soon_as_it_begins() -> None:
    seen: list[tuple[str, int, int]] = []
    stage_of(lambda *told: seen.append(told), "write")(3, 7)
    assert seen == [("write", 0, 0), ("write", 3, 7)]


def test_what_is_counted_is_told_as_a_sum() -> None:
    seen: list[tuple[int, int]] = []
    advance = counted(lambda done, total: seen.append((done, total)), 10)
    advance(4)
    advance(6)
    assert seen == [(4, 10), (10, 10)]


def test_threads_lose_nothing_of_what_they_count() -> None:
    seen: list[int] = []
    advance = counted(lambda done, total: seen.append(done), 400)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(advance, [1] * 400))
    assert seen == list(range(1, 401))


def test_one_thread_at_a_time_is_in_a_callback() -> None:
    inside, most = 0, 0

    def show(stage: str, done: int, total: int) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        inside -= 1

    shown = one_at_a_time(show)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda done: shown("work", done, 40), range(40)))
    assert most == 1
