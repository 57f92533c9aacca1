"""Interleaved timing, on a clock that only the things timed move."""

import pytest

from lbcompiler.bench import timing


class Clock:
    """`time` as timing.py uses it. For `spinning` seconds after work idle threads take a core."""

    def __init__(self, spinning: float = 0.0) -> None:
        self.now, self.used, self.spinning, self.awake_until = 0.0, 0.0, spinning, 0.0
        self.calls: list[str] = []
        self.disturbed: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.used

    def sleep(self, seconds: float) -> None:
        self.used += min(seconds, max(0.0, self.awake_until - self.now))
        self.now += seconds

    def work(self, name: str, *seconds: float) -> timing.Work:
        """Takes one of `seconds` after the other, the last for ever."""
        left = list(seconds)

        def call() -> None:
            if self.calls and self.calls[-1] != name and self.now < self.awake_until:
                self.disturbed.append(name)
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.awake_until = self.now + self.spinning

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(spinning=0.125)
    monkeypatch.setattr(timing, "time", made)
    return made


def test_medians_of_calls(clock: Clock) -> None:
    work = {
        "short": clock.work("short", 0.5, 0.001),
        "long": clock.work("long", 9.0, 0.2, 0.3, 5.0, 0.3, 0.2),
    }
    took = timing.interleaved(work, rounds=5)
    assert took == pytest.approx({"short": 0.001, "long": 0.3})


def test_every_round_visits_everything_and_waits_for_idle_threads(clock: Clock) -> None:
    names = "abc"
    work = {name: clock.work(name, 0.05) for name in names}
    timing.interleaved(work, rounds=4)
    assert sorted(clock.calls) == sorted(names * 5)  # one call each to warm up
    for start in range(3, 15, 3):
        assert set(clock.calls[start : start + 3]) == set(names)
    assert clock.disturbed == ["b", "c"]  # when warming up, where nothing is timed


def test_what_wakes_the_threads_does_not_count(clock: Clock) -> None:
    took = timing.interleaved({"x": clock.work("x", 0.001, 0.02, 0.002)}, rounds=1)
    assert took == pytest.approx({"x": 0.002})


def test_rounds_end_at_the_limit_and_progress_is_told(clock: Clock) -> None:
    told = []
    timing.interleaved(
        {"x": clock.work("x", 1.0)},
        rounds=100,
        limit_s=3.5,
        progress=lambda *step: told.append(step),
    )
    assert len(clock.calls) == 1 + 4
    assert told[:2] == [("time", 0, 100), ("time", 1, 100)]
    assert told[-1] == ("time", 100, 100)


def test_a_process_that_never_rests_is_timed_nevertheless(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.spinning = 1e9
    assert timing.interleaved({"x": clock.work("x", 0.1)}, rounds=2) == {"x": pytest.approx(0.1)}
