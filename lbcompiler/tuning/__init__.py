"""Autotuning: the fastest config of each kernel, found by measuring; see docs/tuning.md.

work.py      what is tuned: a kernel at a shape, its space
study.py     the trials of it, in an Optuna study
search.py    the loop: ask, build, measure, tell, make sure
build.py, machine.py                 a candidate's code, where it runs
measure.py, measure_gpu.py           how it is timed
database.py, results.py              where trials are kept, what they say to a compile
tuner.py     all of it in one flow
"""
