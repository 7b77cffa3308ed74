"""Sets the wall clock of this process off by LOCKBEAT_TEST_CLOCK seconds, for all that is written in Python; no other clock."""

import datetime as dt
import os
import time

SHIFT = float(os.environ["LOCKBEAT_TEST_CLOCK"])

_time, _datetime = time.time, dt.datetime


def shifted_time() -> float:
    return _time() + SHIFT


class _Kind(type(_datetime)):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)


class Shifted(_datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(shifted_time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(shifted_time(), dt.timezone.utc).replace(tzinfo=None)


time.time = shifted_time
time.time_ns = lambda: int(shifted_time() * 1_000_000_000)
dt.datetime = Shifted
