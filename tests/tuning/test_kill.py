"""A search that is killed in the middle: nothing that was measured is lost."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lbcompiler.pipeline import silent
from lbcompiler.tuning.database import open_database
from lbcompiler.tuning.search import Limits, search
from lbcompiler.tuning.study import TuningStudy
from tests.tuning.stand_in import LARGE, StandIn, subject

TRIALS = 8
SEARCH = """
import sys, time
from lbcompiler.pipeline import silent
from lbcompiler.tuning.database import open_database
from lbcompiler.tuning.search import Limits, search
from lbcompiler.tuning.study import TuningStudy
from tests.tuning.stand_in import LARGE, StandIn, subject

def ratio(config):
    if len(bench.seen) == 4:
        print(repr(config), flush=True)
        time.sleep(60)
    return 1.0

bench = StandIn(ratio)
search(TuningStudy(open_database(sys.argv[1]), LARGE, subject(LARGE)), bench, Limits(8), silent)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_search_goes_on_where_it_was(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "t.db"
    process = subprocess.Popen(
        [sys.executable, "-c", SEARCH, path],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    interrupted = process.stdout.readline().strip()
    assert interrupted, process.communicate()[1]

    storage = open_database(path)
    while_it_runs = TuningStudy(storage, LARGE, subject(LARGE))
    states = [trial.state.name for trial in while_it_runs.study.trials]
    assert states.count("RUNNING") == 1  # alive, so it is left alone

    process.send_signal(number)
    process.communicate(timeout=20)
    bench = StandIn(lambda config: 1.0)
    study = TuningStudy(storage, LARGE, subject(LARGE))
    assert study.searched == 3
    search(study, bench, Limits(TRIALS), silent)
    assert study.searched == TRIALS
    assert len(bench.seen) == TRIALS - 3
    assert interrupted in map(repr, bench.seen)
    assert "RUNNING" not in [trial.state.name for trial in study.study.trials]
