"""The messages of a queue in Redis, as they lie there: looked at, lost, delivered."""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

from celery import Celery
from celery.app.trace import trace_task
from servers import Server


class Message(NamedTuple):
    """A message; its headers have the id, the task, the time to run at, and ours."""

    headers: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    embed: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.headers["id"])


class Queue:
    """The queue of an app."""

    def __init__(self, app: Celery, server: Server) -> None:
        self._app = app
        self._server = server
        self._name = app.conf.task_default_queue

    def __len__(self) -> int:
        with self._server.client() as client:
            return int(client.llen(self._name))

    def messages(self) -> list[Message]:
        """Those that are in it, in the order in which they were sent."""
        with self._server.client() as client:
            return [_read(raw) for raw in reversed(client.lrange(self._name, 0, -1))]

    def ids(self) -> list[str]:
        return [each.id for each in self.messages()]

    def lose(self) -> Message:
        """Take the next one out, and forget it."""
        with self._server.client() as client:
            return _read(client.rpop(self._name))

    def deliver(self, message: Message | None = None) -> Any:
        """Have the next one, or a copy of one, run as in a worker, now: whenever it is to run. Returns what Celery makes of it."""
        message = message or self.lose()
        task = self._app.tasks[message.headers["task"]]
        request = {
            **message.headers,
            **message.embed,
            "args": message.args,
            "kwargs": message.kwargs,
            "delivery_info": {"routing_key": self._name},
            "hostname": "worker@tests",
        }
        return trace_task(task, message.id, message.args, message.kwargs, request, app=self._app)

    def deliver_all(self) -> None:
        while len(self):
            self.deliver()


def _read(raw: str) -> Message:
    message = json.loads(raw)
    args, kwargs, embed = json.loads(base64.b64decode(message["body"]))
    return Message(message["headers"], args, kwargs, embed)
