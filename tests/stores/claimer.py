"""Replicas that claim ticks beside each other, each with the store opened by itself: claimer.py STORE TARGET HOW_MANY.

It prints which (entry, run) they have published, a line of JSON each.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import uuid

from opening import import_for, open_at

from celery_lockbeat.stores.base import Claim, EntryState


def claim_all(kind: str, target: str, replica: str) -> None:
    store = open_at(kind, target, "lockbeat:")
    published = []
    runs = dict.fromkeys([f"e{n}" for n in range(5)], 0)
    while min(runs.values()) < 60:
        entry = random.choice([name for name, run in runs.items() if run < 60])
        claim = Claim(str(uuid.uuid4()), entry, EntryState(runs[entry] + 1, "t"), {})
        answer = store.beats.claim("app", replica, [claim], ttl=30)
        (refusal,) = answer.refusals
        runs[entry] = runs[entry] + 1 if refusal is None else refusal.total_run_count
        mine = [(claim.task_id, entry, runs[entry])] if refusal is None else []
        ids = [each.task_id for each in answer.overdue]
        taken = store.beats.take_over("app", replica, ids, ttl=30) if ids else []
        mine += [(each.task_id, each.entry, each.run) for each, ours in zip(answer.overdue, taken, strict=True) if ours]
        for task_id, name, run in mine:
            if random.random() < 0.3:
                store.beats.settle("app", replica, [], handed_over=[task_id])
            elif store.beats.settle("app", replica, [(task_id, name)]) == [True]:
                published.append((name, run))
    # what the others handed over last is left to whoever is there last
    while overdue := store.beats.claim("app", replica, [], ttl=30).overdue:
        for each in overdue:
            if store.beats.take_over("app", replica, [each.task_id], ttl=30) == [True]:
                store.beats.settle("app", replica, [(each.task_id, each.entry)])
                published.append((each.entry, each.run))
    # in one write, or lines of two would mix
    sys.stdout.write(json.dumps(published) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    kind, target, how_many = sys.argv[1:]
    # nothing is open yet: all that they have in common is what was imported, once
    import_for(kind)
    make = multiprocessing.get_context("fork").Process
    claimers = [make(target=claim_all, args=(kind, target, str(number))) for number in range(int(how_many))]
    for claimer in claimers:
        claimer.start()
    for claimer in claimers:
        claimer.join()
    sys.exit(any(claimer.exitcode for claimer in claimers))
