"""Independent jobs, each result as it comes: in processes of this machine or on a cluster.

joblib's loky runs them here. Its bridges to clusters do not serve (joblib 1.6): ray's cannot give
results one by one, and dask's waits for ever where a job has failed. So those two are asked
themselves: for the cluster that the process is connected to, else for that of the environment
(RAY_ADDRESS, DASK_SCHEDULER_ADDRESS), else for one that is started on this machine and ended
again. Both give the job of a worker that died to another before they give up."""

import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from typing import Any

from lbcompiler.errors import ConfigError, LbcError

RETRIES = 1  # on ray, of a job whose worker died; dask's number is of its own configuration

Job = Callable[..., Any]
Results = Generator[Any, None, None]
Work = Iterable[tuple[Any, ...]]  # the arguments of each call


class WorkerDiedError(LbcError):
    """A process ended that had a job to do; results that were given before are good."""


def completed(backend: str, limit: int | None, job: Job, work: Work) -> Results:
    """The results of job(*arguments) for all arguments of `work`, in the order of their ends.

    At most `limit` run at a time (None: one for each core that there is), and arguments are asked
    for when there is room for them. Raises WorkerDiedError, ConfigError where the backend's package
    is missing, and what a job raises."""
    try:
        started = _BACKENDS[backend](limit, job, iter(work))
        with closing(started):
            yield from started
    except ImportError as error:
        raise ConfigError(
            f"--jobs-backend {backend} needs a package that is not installed ({error.name}): "
            f"pip install 'lbcompiler[{backend}]'"
        ) from None


def _on_loky(limit: int | None, job: Job, work: Iterator[Any]) -> Results:
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    jobs = limit or len(os.sched_getaffinity(0))
    calls = (delayed(job)(*arguments) for arguments in work)
    threads = 1 if jobs > 1 else None  # each process its share of the cores
    try:
        with parallel_config(backend="loky", inner_max_num_threads=threads):
            parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch=jobs)
            yield from parallel(calls)
    except TerminatedWorkerError as error:
        raise WorkerDiedError(str(error).splitlines()[0]) from None


def _on_ray(limit: int | None, job: Job, work: Iterator[Any]) -> Results:
    import ray
    from ray.exceptions import RayError, RayTaskError

    with _ray_cluster():
        remote = ray.remote(max_retries=RETRIES)(job)
        jobs = limit or max(1, int(ray.cluster_resources().get("CPU", 1)))
        running = [remote.remote(*arguments) for arguments in islice(work, jobs)]
        try:
            while running:
                (done, *_), running = ray.wait(running)
                result = ray.get(done)
                running += [remote.remote(*arguments) for arguments in islice(work, 1)]
                yield result
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise WorkerDiedError(str(error).splitlines()[0]) from None
        finally:
            for reference in running:
                ray.cancel(reference)


@contextmanager
def _ray_cluster() -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _on_dask(limit: int | None, job: Job, work: Iterator[Any]) -> Results:
    from distributed import KilledWorker, as_completed

    with _dask_client() as client, warnings.catch_warnings():
        # of arguments that go along with the job: scattered, they would die with their worker
        warnings.filterwarnings("ignore", "Sending large graph")

        def submitted(count: int) -> list[Any]:
            return [client.submit(job, *a, pure=False) for a in islice(work, count)]

        jobs = limit or max(1, sum(client.ncores().values()))
        running = as_completed(submitted(jobs))
        try:
            for done in running:
                result = done.result()
                running.update(submitted(1))
                yield result
        except KilledWorker as error:
            raise WorkerDiedError(str(error).splitlines()[0]) from None
        finally:  # a cluster that stays would do the rest, for nobody
            client.cancel(list(running.futures))


def _dask_client() -> Any:
    """A context that gives a client; one that was open stays so."""
    import distributed
    from dask import config

    try:
        return nullcontext(distributed.get_client())
    except ValueError:  # there is none
        if config.get("scheduler-address", None):  # of DASK_SCHEDULER_ADDRESS
            return distributed.Client()
        return distributed.Client(threads_per_worker=1, dashboard_address=None)


_BACKENDS = {"loky": _on_loky, "ray": _on_ray, "dask": _on_dask}
BACKENDS = tuple(_BACKENDS)
