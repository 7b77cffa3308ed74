"""The app of the real beats of ``replicas.py``, made of what it left in the environment."""

from __future__ import annotations

import json
import os

from benchmarks.beat import Load, make_app

settings = json.loads(os.environ["LOCKBEAT_BENCH_BEATS"])
app = make_app(settings["url"], Load(**settings["load"]), settings["directory"])
app.conf.update(settings["conf"])
