"""What type checkers are told of the tasks that ``cron``, ``interval`` and ``timeout`` make: nothing is here at run time.

The function's parameters count for a direct call, ``run``, ``delay`` and ``si``. As with Celery's own stubs (celery-types),
``s`` may leave some of them out, and ``apply_async`` takes any: no checker can match a tuple and a mapping with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

    from celery.canvas import Signature
    from celery.result import AsyncResult, EagerResult

    from celery_lockbeat.tasks.task import LockedTask

    __all__ = ["BoundDecorator", "Decorator", "TypedTask"]

    P = ParamSpec("P")
    R = TypeVar("R")
    R_co = TypeVar("R_co", covariant=True)

    class TypedTask(LockedTask, Generic[P, R_co]):
        """A LockedTask of a function with the parameters ``P`` that returns ``R_co``."""

        name: str
        __wrapped__: Callable[P, R_co]

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
            """Run the body here and now, under its lock."""

        def run(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
            """Run the body here and now, under its lock."""

        def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R_co]:
            """Send a message for one run."""

        def apply_async(  # type: ignore[override]
            self,
            args: Sequence[Any] | None = None,
            kwargs: Mapping[str, Any] | None = None,
            *,
            countdown: float | None = None,
            eta: datetime | None = None,
            expires: float | datetime | None = None,
            queue: str | None = None,
            task_id: str | None = None,
            **options: Any,
        ) -> AsyncResult[R_co]:
            """Send a message for one run."""

        def apply(
            self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
        ) -> EagerResult[R_co]:
            """Run the task here and now, as a worker would."""

        def s(self, *args: Any, **kwargs: Any) -> Signature[R_co]:
            """A signature, to which arguments can be added."""

        def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R_co]:
            """A signature that takes no further arguments."""

    class Decorator(Protocol):
        """Makes a task of a function."""

        def __call__(self, function: Callable[P, R], /) -> TypedTask[P, R]:
            """Make it."""

    class BoundDecorator(Protocol):
        """Makes a task of a function whose first parameter is the task (``bind=True``)."""

        def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> TypedTask[P, R]:
            """Make it."""
