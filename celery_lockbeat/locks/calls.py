"""What is told to those who wait for a lock, when it is their turn: their own messages, sent once more.

Promises: a message is sent as it came, for whoever frees a lock need not know its task, or trust its serializer; who cannot send it
breaks nothing, since another copy of it is on its way.
"""

from __future__ import annotations

import hashlib
import json
import logging
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

from kombu.serialization import dumps

from celery_lockbeat.stores import on_called

__all__ = ["Recorder", "written"]

logger: Final = logging.getLogger("celery_lockbeat")

#: Of what Celery gives to a producer, what is a message's own.
_OWN: Final = ("routing_key", "delivery_mode", "correlation_id", "reply_to", "priority", "expiration")


class Recorder:
    """In the place of a producer: it remembers what would be sent."""

    body: Any = None
    options: Mapping[str, Any] = {}

    @property
    def connection(self) -> Recorder:
        """What a producer has."""
        return self

    def _reraise_as_library_errors(self) -> Any:
        return nullcontext()

    def publish(self, body: Any, **options: Any) -> None:
        """Remember one message."""
        self.body, self.options = body, options


def written(app: Any, message: Recorder) -> str:
    """Write a message as a text, for whoever is to send it; "" where it cannot be."""
    options = message.options
    content_type, encoding, body = dumps(message.body, serializer=options.get("serializer"))  # type: ignore[no-untyped-call]
    exchange = options.get("exchange")
    known = {
        "to": _broker_of(app),
        "type": content_type,
        "encoding": encoding,
        "body": body if isinstance(body, str) else b64encode(body).decode(),
        "binary": not isinstance(body, str),
        "headers": options.get("headers"),
        "exchange": getattr(exchange, "name", exchange),
        **{name: options[name] for name in _OWN if options.get(name) is not None},
    }
    try:
        return json.dumps(known)
    except (TypeError, ValueError):
        return ""


def _broker_of(app: Any) -> str:
    """Name the broker of an app, without its password."""
    known = vars(app).get("lockbeat_broker")
    if known is None:
        uri = app.connection_for_write().as_uri()
        known = vars(app)["lockbeat_broker"] = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return str(known)


def _send(app: Any, _store: object, _key: str, texts: Sequence[str]) -> None:
    try:
        messages = [json.loads(text) for text in texts]
        ours = [message for message in messages if message["to"] == _broker_of(app)]
        if ours:
            with app.amqp.producer_pool.acquire(block=True, timeout=1.0) as producer:
                for message in ours:
                    _publish(producer, message)
    except Exception:
        logger.warning("who is next in line could not be told, and comes by itself", exc_info=True)


def _publish(producer: Any, message: Mapping[str, Any]) -> None:
    body = message["body"]
    producer.publish(
        b64decode(body) if message["binary"] else body,
        content_type=message["type"],
        content_encoding=message["encoding"],
        headers=message["headers"],
        exchange=message["exchange"],
        retry=True,
        retry_policy={"max_retries": 1, "interval_start": 0},
        **{name: message[name] for name in _OWN if name in message},
    )


on_called(_send)
