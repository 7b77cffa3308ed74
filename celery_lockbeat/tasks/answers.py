"""The reply of a skipped attempt, or of a message that was not sent, for whoever waits for its result, its chord or its chain.

Celery leaves an Ignore without a reply. Promises: what an earlier attempt of the same task has replied is never overwritten.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from celery import states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError

from celery_lockbeat.exceptions import TaskSkipped
from celery_lockbeat.locks.children import events_wanted
from celery_lockbeat.tasks.copies import may_be_sent_anew

__all__ = ["answer_refused", "answer_skipped"]

logger: Final = logging.getLogger("celery_lockbeat")


def answer_skipped(task: Any, request: Any, skipped: TaskSkipped, *, task_is_over: bool) -> None:
    """Reply that ``request`` was skipped. ``task_is_over``: an earlier attempt has been the task's last."""
    backend = task.backend
    try:
        if skipped.reason == "duplicate" and _has_reply(backend, request.id, task_is_over):
            if may_be_sent_anew(request):
                _pass_on(task, request, backend.get_task_meta(request.id, cache=False))
            return
        # Not mark_as_revoked(): it forgets a chord around a chain whose member is skipped.
        backend.mark_as_failure(
            request.id,
            TaskRevokedError(str(skipped)),
            request=request,
            store_result=not _ignores_result(task, request),
            call_errbacks=False,
            state=states.REVOKED,
        )
        if events_wanted() and task.send_events:
            # as the worker does for a task that it does not run (celery 5.7, worker/request.py, _announce_revoked)
            reason = repr(TaskRevokedError(str(skipped)))
            task.send_event("task-revoked", terminated=False, signum=None, expired=False, exception=reason)
    except Exception:
        logger.exception("nobody could be told that %s[%s] was skipped", task.name, request.id)


def answer_refused(task: Any, task_id: str, options: Mapping[str, Any], text: str, *, anybody_waits: bool) -> None:
    """Reply that a message was not sent under the id that its sender had chosen, as if it had been skipped.

    Celery chooses those of a chain's, a group's and a chord's members before it sends any. ``anybody_waits``: somebody may know
    the id by itself.
    """
    request = Context(
        id=task_id,
        task=task.name,
        chain=options.get("chain"),
        chord=options.get("chord"),
        group=options.get("group_id"),
        **{name: options.get(name) for name in ("group_index", "root_id", "parent_id", "ignore_result")},
    )
    if not (anybody_waits or request.chain or request.chord):
        return
    try:
        task.backend.mark_as_failure(
            task_id,
            TaskRevokedError(text),
            request=request,
            store_result=not _ignores_result(task, request),
            call_errbacks=False,
            state=states.REVOKED,
        )
    except Exception:
        logger.exception("nobody could be told that %s[%s] was not sent", task.name, task_id)


def _has_reply(backend: Any, task_id: str, task_is_over: bool) -> bool:
    """Whether this task has a reply. Until it is over, another attempt that has begun, or a user's own state, is one."""
    try:
        state = backend.get_state(task_id)
    except Exception:  # noqa: BLE001  a backend that cannot tell, such as the disabled one
        return False
    return state in states.READY_STATES or not (
        task_is_over or state in (states.PENDING, states.RECEIVED, states.STARTED)
    )


def _pass_on(task: Any, request: Any, reply: Mapping[str, Any]) -> None:
    """Pass an earlier attempt's reply on to the chord, the chain and the callbacks of a message that was sent anew.

    Those of a copy have had it from that attempt. As Celery does at a run's end (celery 5.7, app/trace.py).
    """
    state, result = reply["status"], reply["result"]
    if state == states.SUCCESS:
        *rest, following = request.chain or [None]
        options = {"parent_id": request.id, "root_id": request.root_id or request.id}
        for each, more in [(each, {}) for each in request.callbacks or ()] + [(following, {"chain": rest})]:
            if each is not None:
                task.app.signature(each).apply_async((result,), **options, **more)
        task.backend.mark_as_done(request.id, result, request, store_result=False)
    elif state in states.READY_STATES:
        trace, failed = reply.get("traceback"), state == states.FAILURE
        task.backend.mark_as_failure(
            request.id, result, trace, request, store_result=False, call_errbacks=failed, state=state
        )


def _ignores_result(task: Any, request: Any) -> bool:
    # None: the caller, who knows only the task's name, leaves it to the task (celery 5.7, app/base.py, send_task)
    asked = vars(request).get("ignore_result")
    return bool(task.ignore_result if asked is None else asked)
