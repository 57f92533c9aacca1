"""Jobs on a dask cluster that was there before: found by its address, and left idle."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from lbcompiler.decisions.jobs import completed

distributed = pytest.importorskip("distributed")
config = pytest.importorskip("dask").config

LONG = 0.2  # seconds of a job
PATIENCE = 5.0  # seconds for a scheduler to forget what was cancelled


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster


def where(number: int) -> tuple[int, str]:
    return number, distributed.get_worker().scheduler.address


def long(number: int) -> int:
    time.sleep(LONG)
    return number


def test_the_address_of_the_environment_is_asked(cluster: Any) -> None:
    address = cluster.scheduler_address
    with config.set(config.collect_env({"DASK_SCHEDULER_ADDRESS": address})):
        found = list(completed("dask", None, where, ((n,) for n in range(3))))
    assert sorted(found) == [(n, address) for n in range(3)]


def test_what_is_left_when_nobody_asks_on_is_cancelled(cluster: Any) -> None:
    asked = 64
    with distributed.Client(cluster):
        results = completed("dask", asked, long, ((n,) for n in range(asked)))
        next(results)
        results.close()
        end = time.monotonic() + PATIENCE
        while cluster.scheduler.tasks and time.monotonic() < end:
            time.sleep(LONG / 10)
        assert not cluster.scheduler.tasks
