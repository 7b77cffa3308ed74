"""Side by side with the peers: ``python -m benchmarks`` runs it all, and writes one report with one chart.

Each module measures one thing, and is a script of its own as well (``python benchmarks/tasks.py --help``):

    beat.py         what a beat can send, with many entries        (dynamic.py: RedBeat's entries, django_beat.py: Django's)
    replicas.py     the same of one, two and three real beats; the longest silence after one of them is killed
    store.py        what one acquire and release takes
    tasks.py        what a lock costs a worker, in each pool       (kinds.py: its tasks)
    control.py      how noisy the machine was meanwhile
    report.py       the tables and the chart: no measuring, no servers

Read the ratios, not the absolutes. Nothing here asserts a time.
"""
