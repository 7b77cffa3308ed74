"""Runs ``celery`` as often as it is asked to, each time in a process of its own, for which Celery is imported once.

It reads what to run from its stdin, a line of JSON each, and writes the status that it ended with to its stdout. An interpreter
that starts and imports Celery takes several times as long as what one of our commands then does.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import time
from typing import Any

# with the commands of all that is installed, as `python -m celery` has them
import celery.bin.celery  # noqa: F401


def become(request: dict[str, Any]) -> None:
    """Be the process that was asked for, as far as it could tell."""
    for number, name in enumerate((os.devnull, request["stdout"], request["stderr"])):
        file = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    sys.path[0] = request["directory"]
    sys.path[1:1] = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each not in ("", *sys.path)]
    sys.argv[1:] = request["arguments"]
    # what it imports from there may be another file within the second
    sys.dont_write_bytecode = True


def main() -> None:
    # a child that collects garbage writes to all that it has of its parent, and all that is copied then
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            become(json.loads(line))
            runpy.run_module("celery", run_name="__main__", alter_sys=True)
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


main()
