"""How a script reaches the server that has its keys, and how often it is asked.

Promises: what is asked is answered, or given up, within the time that the caller has; what a server refuses only for now (it
loads, fails over, moves a slot, runs another's script) is asked again while that time lasts.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AskError, MovedError, NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.options import timeouts
from celery_lockbeat.stores.redis.node import Line, Node
from celery_lockbeat.stores.redis.refusals import TooFewReplicas, for_now, lacks_replicas, refuses
from celery_lockbeat.stores.redis.scripts import Call

__all__ = ["Progress", "Servers"]

#: Seconds between two tries.
PAUSE: Final = 0.05

#: Seconds that a server is given however little time is left.
LEAST: Final = 0.01

#: Tries to reach a server that refuses connections or closes them, where no other stands in for it.
TRIES: Final = 2

#: Options whose files OpenSSL would only say of that there is one that it does not find.
_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")

#: Options that redis-py's pools know, and its connections do not.
_OF_POOLS: Final = ("connection_class", "max_connections", "ssl")


class Servers:
    """One server; Sentinels and Cluster find the right one among several."""

    #: options that are ours
    own_options: tuple[str, ...] = ()
    #: whether keys with different tags are on different servers, so that no script may have both
    is_parted = False

    def __init__(self, url: str, options: Mapping[str, Any], setting: str) -> None:
        self._settings = url, options, setting
        #: seconds to wait for a connection, for an answer, and for which an operation asks again at most
        self.connect_timeout, self.timeout = timeouts(options)
        self.time_allowed = self.connect_timeout + self.timeout
        self._arguments = {
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.connect_timeout,
            "retry": Retry(NoBackoff(), 0),
            **options,
            "decode_responses": False,
        }
        self._open(url)

    def _open(self, url: str) -> None:
        if self._arguments.pop("ssl", False):
            url = re.sub("^redis:", "rediss:", url)
        self._only = Node(self._checked(redis.ConnectionPool.from_url(url, **self._arguments)))

    def _checked(self, pool: Any) -> Any:
        """Return the pool, if its connections take all that the URL and the options say."""
        known = {
            name
            for each in pool.connection_class.__mro__
            for name, parameter in inspect.signature(each.__init__).parameters.items()
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        }
        known = known.difference(["self", "connection_pool"]).union(_OF_POOLS, self.own_options)
        for name in self._settings[1].keys() | pool.connection_kwargs.keys():
            if name not in known and name != "connection_pool":
                near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
                raise ConfigurationError(
                    f"{name} of lockbeat_redis_options or {self._settings[2]} is no argument of redis-py {redis.__version__}; "
                    f"did you mean {near}? allowed: {', '.join(sorted(known))}"
                )
            if name in _FILES and not os.path.exists(path := pool.connection_kwargs.get(name) or "/"):  # noqa: PTH110
                raise ConfigurationError(
                    f"{name} of lockbeat_redis_options or {self._settings[2]} is {path!r}: it is not there"
                )
        pool.connection_class(**pool.connection_kwargs)
        return pool

    def anew(self) -> Servers:
        """Return the same servers without a connection to them."""
        return type(self)(*self._settings)

    def nodes(self) -> Iterable[Node]:
        """Return the servers that have keys of ours, as far as they are known."""
        return [self._only]

    def primaries(self) -> Iterable[Node]:
        """Return the servers that may be written to. Raises RedisError and OSError."""
        return self.nodes()

    def close(self) -> None:
        """Close all connections that nobody uses now; they open again when they are used."""
        for node in self.nodes():
            node.close()

    # -- asking --------------------------------------------------------------------------------------------------------

    def ask_one(self, call: Call, within: float) -> Any:
        """Do as ``ask`` does, with one call: nearly all are answered at once, and pay for nothing else."""
        started = monotonic()
        try:
            answer = self.node_of(call.keys[0]).talk(Line.ask, call, min(self.timeout, max(within, LEAST)))
        except (RedisError, OSError) as exc:
            answer = exc
        if isinstance(answer, Exception):
            (answer,) = self.ask([call], within - (monotonic() - started), first=answer)
        return answer

    def ask(self, calls: Sequence[Call], within: float, *, min_replicas: int = 0, first: Any = None) -> list[Any]:
        """Run scripts; return for each its answer, or the exception that it ended in.

        A write that fewer than ``min_replicas`` have confirmed ends in TooFewReplicas. ``first``: the answer of a try that
        was made before.
        """
        deadline = monotonic() + max(within, LEAST)
        answers: list[Any] = [first] * len(calls)
        progress = Progress()
        waiting = list(range(len(calls)))
        while True:
            if first is None or progress.rounds:
                self._ask_all(calls, waiting, progress, answers, deadline, min_replicas)
            progress.begin_another_round()
            waiting = [each for each in waiting if self._ask_again(each, calls[each], answers[each], progress)]
            now = monotonic()
            if waiting and not progress.pause:
                # the server is there, and says what it lacks: slow greetings must not have used up the time for that
                deadline = max(deadline, now + self.timeout)
            if not waiting or now + progress.pause >= deadline:
                return [progress.told(each, answer) for each, answer in enumerate(answers)]
            time.sleep(progress.pause)

    def _ask_all(
        self,
        calls: Sequence[Call],
        waiting: Iterable[int],
        progress: Progress,
        answers: list[Any],
        deadline: float,
        min_replicas: int,
    ) -> None:
        groups = self._by_node(calls, waiting, progress, answers)
        # those that failed last come last: what they cost must not be at the others' expense
        for position, node in enumerate(sorted(groups, key=lambda node: node.fails)):
            share = (deadline - monotonic()) / (len(groups) - position)
            timeout = min(self.timeout, max(share, LEAST))
            asked = [(calls[each], each in progress.asking, each in progress.unknown) for each in groups[node]]
            for each, answer in zip(groups[node], node.run_all(asked, timeout, min_replicas), strict=True):
                if isinstance(answer, NoAnswer) and timeout < self.timeout and for_now(answers[each]):
                    progress.refusals[each] = answers[each]
                answers[each] = answer

    def _by_node(
        self, calls: Sequence[Call], waiting: Iterable[int], progress: Progress, answers: list[Any]
    ) -> dict[Node, list[int]]:
        groups: dict[Node, list[int]] = {}
        for each in waiting:
            try:
                node = progress.asking.get(each) or self.node_of(calls[each].keys[0])
            except (RedisError, OSError) as exc:  # noqa: PERF203  free where nothing is raised
                answers[each] = exc
            else:
                groups.setdefault(node, []).append(each)
        return groups

    def _ask_again(self, each: int, call: Call, answer: Any, progress: Progress) -> bool:
        """Whether another answer may come; learn from this one where to ask, and how."""
        if lacks_replicas(answer):
            self._doubt()
        if not isinstance(answer, Exception) or isinstance(answer, TooFewReplicas) or refuses(answer):
            return False
        if isinstance(answer, NoScriptError):
            known, progress.unknown = each not in progress.unknown, progress.unknown | {each}
            return known
        if isinstance(answer, AskError):
            return self._follow(each, call, answer, progress)
        if for_now(answer):
            progress.pause = PAUSE
            return True
        if isinstance(answer, ResponseError):
            return False
        progress.pause = PAUSE
        # one round may have gone to learn that the server does not know the script
        return self._reach_another() or progress.rounds - bool(progress.unknown) < TRIES

    # -- what there is more than one of --------------------------------------------------------------------------------

    def node_of(self, _key: str) -> Node:
        """Return the server that has this key. Raises RedisError and OSError."""
        return self._only

    def _follow(self, _each: int, _call: Call, _answer: AskError, _progress: Progress) -> bool:
        """Follow a slot to its node."""
        return False

    def _reach_another(self) -> bool:
        """Whether another server may stand in for one that does not answer."""
        return False

    def says_no(self, answer: Exception) -> bool:
        """Whether it is no outage, but a server that will not do what is asked of it for as long as the settings are these."""
        return refuses(answer) or isinstance(answer, MovedError)

    def _doubt(self) -> None:
        """Learn that a primary has no replicas: it may have been replaced."""


class Progress:
    """What is known of the calls that wait for an answer."""

    def __init__(self) -> None:
        self.rounds = 0
        self.pause = 0.0
        self.unknown: set[int] = set()  # scripts that the server does not know
        self.asking: dict[int, Node] = {}  # a slot is on its way there
        self.refusals: dict[int, Exception] = {}  # and had no time left to be said again

    def begin_another_round(self) -> None:
        """Forget what counted for one round only."""
        self.rounds += 1
        self.pause = 0.0 if self.rounds == 1 else PAUSE
        self.asking = {}

    def told(self, each: int, answer: Any) -> Any:
        """Return why a call was refused, rather than that this was not said again in the rest of the time."""
        return self.refusals.get(each, answer) if isinstance(answer, NoAnswer) else answer
