"""Tasks that wait in line, for workers that ``include`` this module."""

from __future__ import annotations

from apps import holding

AGAIN = {"acks_late": True, "reject_on_worker_lost": True}

# the leases outlast every wait of the tests
for name in ("wait", "wait_one", "wait_latest"):
    holding(name, lock_ttl=300, lock_if_held=name, **AGAIN)
holding("wait_briefly", lock_ttl=300, lock_if_held="wait", lock_wait_at_most=2, **AGAIN)
holding("share", lock_ttl=300, lock_if_held="wait", lock_limit=2, **AGAIN)
holding("wait_in_memory", lock_ttl=300, lock_if_held="wait", lock_driver="memory", **AGAIN)
