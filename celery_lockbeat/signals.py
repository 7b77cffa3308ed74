"""One Celery signal per event. Receivers get the event's fields as keywords.

``sender`` is the task, the Lock, or the beat's scheduler.

A receiver can slow a run but never break it: ``Signal.send`` logs what a receiver raises, and nothing depends on it.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = [
    "driver_fallback",
    "entry_paused",
    "entry_silent",
    "lock_acquired",
    "lock_expired_before_finish",
    "lock_extend_failed",
    "lock_extended",
    "lock_released",
    "lock_replaced",
    "run_overdue",
    "task_failed",
    "task_finished",
    "task_retried",
    "task_skipped",
    "task_started",
    "task_succeeded",
    "task_waiting",
    "tick_late",
    "tick_missed",
]

task_started = Signal(name="lockbeat_task_started")
task_succeeded = Signal(name="lockbeat_task_succeeded")
task_failed = Signal(name="lockbeat_task_failed")
task_retried = Signal(name="lockbeat_task_retried")
task_skipped = Signal(name="lockbeat_task_skipped")
task_finished = Signal(name="lockbeat_task_finished")
lock_acquired = Signal(name="lockbeat_lock_acquired")
lock_extended = Signal(name="lockbeat_lock_extended")
lock_released = Signal(name="lockbeat_lock_released")
lock_replaced = Signal(name="lockbeat_lock_replaced")
lock_extend_failed = Signal(name="lockbeat_lock_extend_failed")
lock_expired_before_finish = Signal(name="lockbeat_lock_expired_before_finish")
driver_fallback = Signal(name="lockbeat_driver_fallback")
task_waiting = Signal(name="lockbeat_task_waiting")
run_overdue = Signal(name="lockbeat_run_overdue")
tick_late = Signal(name="lockbeat_tick_late")
tick_missed = Signal(name="lockbeat_tick_missed")
entry_silent = Signal(name="lockbeat_entry_silent")
entry_paused = Signal(name="lockbeat_entry_paused")
