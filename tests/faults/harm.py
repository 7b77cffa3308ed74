"""The faults themselves: each does one thing to the system, writes it down, and is undone when its time is over."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from faults.moments import CELLS, STEPS, Cell, Strike
from faults.plan import Planned
from faults.system import Elected, Member, System, owner_of

#: A moment that has not come after so many seconds is not waited for any more.
STRIKE_WITHIN = 6.0


class Harm:
    """What is being done to a system."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.moments: Counter[Cell] = Counter()
        self._strikes: list[tuple[float, Strike]] = []
        self._undo: list[tuple[float, dict[str, Any], Callable[[], object]]] = []
        self._struck: queue.SimpleQueue[tuple[float, dict[str, Any], Callable[[], object]]] = queue.SimpleQueue()
        self._down: set[str] = set()  # servers, and ways to them
        # a blow may fall just when all is being undone
        system.undo = self.look

    def do(self, planned: Planned, theme: str) -> bool:
        """Do it, if there is somebody to do it to."""
        return bool(getattr(self, "_" + planned.kind.replace(" ", "_"))(planned, theme))

    def look(self) -> None:
        """Undo what is over."""
        now = time.monotonic()
        for at, strike in list(self._strikes):
            if strike.over.is_set() or now > at:
                strike.disarm()
                self._strikes.remove((at, strike))
        with contextlib.suppress(queue.Empty):
            while True:
                self._undo.append(self._struck.get_nowait())
        for each in [each for each in self._undo if each[0] <= now]:
            self._undo.remove(each)
            self._end(each)

    def heal(self) -> None:
        """Undo everything."""
        for _, strike in self._strikes:
            strike.disarm()
        self._strikes.clear()
        self.look()
        for each in self._undo:
            self._end(each)
        self._undo.clear()

    def _end(self, each: tuple[float, dict[str, Any], Callable[[], object]]) -> None:
        _, line, undo = each
        undo()
        line["until"] = time.monotonic()

    def _note(self, kind: str, target: str, *, seconds: float = 0.0, **fields: Any) -> dict[str, Any]:
        now = time.monotonic()
        line = {"what": "fault", "at": now, "kind": kind, "target": target, "until": now + seconds, **fields}
        self.system.history.lines.append(line)
        return line

    # -- processes -----------------------------------------------------------------------------------------------------

    def _up(self, members: list[Member]) -> list[Member]:
        return [each for each in members if each.up and each.ending_since is None and each.process is not None]

    def _kill(self, member: Member, pids: list[int], *, kind: str, moment: str | None = None) -> None:
        """SIGKILL; a parent's children die with it (Celery asks Linux for that)."""
        whole = member.process is not None and member.process.pid in pids
        doomed = sorted({*pids, *member.pids()}) if whole else pids
        harms = [member.name, *([] if member.beat else ["worker"])] if whole else []
        if whole:
            member.doom(self.system.keeper._chance.uniform(0, 2))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._note(kind, member.name, killed=doomed, harms=harms, moment=moment)

    def _freeze(self, member: Member, pids: list[int], seconds: float, *, kind: str, moment: str | None = None) -> None:
        parent = member.process is not None and member.process.pid in pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        if parent:
            member.frozen_until = time.monotonic() + seconds
        harms = [member.name, *([] if member.beat else ["worker"])] if parent else []
        line = self._note(kind, member.name, seconds=seconds, frozen=pids, harms=harms, moment=moment)

        def thaw() -> None:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

        self._struck.put((time.monotonic() + seconds, line, thaw))

    def _kill_beat(self, planned: Planned, theme: str) -> bool:
        return self._blow_between(self.system.beats, "kill", "due", planned)

    def _freeze_beat(self, planned: Planned, theme: str) -> bool:
        return self._blow_between(self.system.beats, "freeze", "due", planned)

    def _blow_between(self, members: list[Member], blow: str, step: str, planned: Planned) -> bool:
        member = _one_of(self._up(members), planned.who)
        if member is None or time.monotonic() < member.frozen_until:
            return False
        self.moments[step, "during", blow] += 1
        moment = f"{step}, {blow}"
        if blow == "kill":
            self._kill(member, [member.process.pid], kind="kill beat", moment=moment)
        else:
            self._freeze(member, [member.process.pid], planned.seconds, kind="freeze beat", moment=moment)
        return True

    def _kill_child(self, planned: Planned, theme: str) -> bool:
        return self._blow_to_a_child("kill", planned)

    def _freeze_child(self, planned: Planned, theme: str) -> bool:
        return self._blow_to_a_child("freeze", planned)

    def _blow_to_a_child(self, blow: str, planned: Planned) -> bool:
        """Mostly to one that runs a body: the children of a pool are seldom busy."""
        children = {pid: member for member in self._up(self.system.workers) for pid in member.children()}
        running = {pid: children[pid] for pid in list(self.system.bodies.begun) if pid in children}
        pid = _one_of(sorted(running if planned.how < 0.8 and running else children), planned.who)
        if pid is None:
            return False
        moment = None
        if pid in running:
            self.moments["run", "during", blow] += 1
            moment = f"run, {blow}"
        if blow == "kill":
            self._kill(children[pid], [pid], kind="kill child", moment=moment)
        else:
            self._freeze(children[pid], [pid], planned.seconds, kind="freeze child", moment=moment)
        return True

    def _kill_worker(self, planned: Planned, theme: str) -> bool:
        member = _one_of(self._up(self.system.workers), planned.who)
        if member is None:
            return False
        # as a host dies, or as a process does
        self._kill(member, member.pids() if planned.how < 0.3 else [member.process.pid], kind="kill worker")
        return True

    def _freeze_worker(self, planned: Planned, theme: str) -> bool:
        member = _one_of(self._up(self.system.workers), planned.who)
        if member is None or time.monotonic() < member.frozen_until:
            return False
        pids = member.pids() if planned.how < 0.5 else [member.process.pid]
        self._freeze(member, pids, planned.seconds, kind="freeze worker")
        return True

    def _deploy(self, planned: Planned, theme: str) -> bool:
        """One step of a rolling update: a beat ends, and comes back with the other schedule."""
        if any(each.ending_since is not None for each in self.system.members):
            return False
        member = _one_of(
            [each for each in self._up(self.system.beats) if time.monotonic() > each.frozen_until], planned.who
        )
        if member is None:
            return False
        self._note("deploy", member.name, harms=[member.name])
        member.release = "b" if member.release == "a" else "a"
        member.end()
        return True

    def _set_the_clock(self, planned: Planned, theme: str) -> bool:
        member = _one_of([each for each in self.system.beats if not each.shift], planned.who)
        if member is None:
            return False
        shift = (planned.how - 0.5) * 8
        line = self._note("set the clock", member.name, seconds=2 * planned.seconds, by=round(shift, 2))
        member.set_clock(shift)
        self._struck.put((time.monotonic() + 2 * planned.seconds, line, lambda: member.set_clock(0.0)))
        return True

    # -- at a moment ---------------------------------------------------------------------------------------------------

    def _strike(self, planned: Planned, theme: str) -> bool:
        """Wait for the moment that has had the fewest blows so far; it is counted, and written down, when it comes."""
        armed = {strike.cell for _, strike in self._strikes}
        if len(armed) >= 3:
            return False
        role = {"beats": "beat", "workers": "worker", "deploys": "beat"}.get(theme)
        cells = [cell for cell in CELLS if cell[0] in STEPS and cell not in armed and role in (None, STEPS[cell[0]][0])]
        fewest = min(self.moments[cell] for cell in cells)
        cell = _one_of([cell for cell in cells if self.moments[cell] == fewest], planned.who)
        assert cell is not None
        if cell[0] == "take over":
            # there must be something that a dead beat has left
            self._arm(("claim", "before the answer", "kill"), planned)
        self._arm(cell, planned)
        return False

    def _arm(self, cell: Cell, planned: Planned) -> None:
        members = self.system.beats if STEPS[cell[0]][0] == "beat" else self.system.workers

        def blow(strike: Strike, member: Member, port: int) -> float:
            pid = owner_of(port, member.pids())
            if pid is None or member.ending_since is not None:
                return 0.001
            step, side, how = cell
            self.moments[cell] += 1
            moment = f"{step}, {side}, {how}"
            if how == "kill":
                self._kill(member, [pid], kind="kill", moment=moment)
                return 0.0
            self._freeze(member, [pid], planned.seconds, kind="freeze", moment=moment)
            return planned.seconds

        self._strikes.append((time.monotonic() + STRIKE_WITHIN, Strike(cell, members, blow)))

    # -- servers -------------------------------------------------------------------------------------------------------

    def _kill_store(self, planned: Planned, theme: str) -> bool:
        if isinstance(self.system.store, Elected):
            return self._harm_primary("kill", planned, planned.seconds)
        return self._kill_server("store", planned)

    def _kill_broker(self, planned: Planned, theme: str) -> bool:
        return self._kill_server("broker", planned)

    def _kill_server(self, name: str, planned: Planned) -> bool:
        return self._harm_server(name, "kill", planned, lambda server: server.kill(), lambda server: server.start())

    def _freeze_store(self, planned: Planned, theme: str) -> bool:
        if isinstance(self.system.store, Elected):
            return self._harm_primary("freeze", planned, planned.seconds)
        return self._freeze_server("store", planned)

    def _freeze_broker(self, planned: Planned, theme: str) -> bool:
        return self._freeze_server("broker", planned)

    def _freeze_server(self, name: str, planned: Planned) -> bool:
        return self._harm_server(name, "freeze", planned, lambda server: server.pause(), lambda server: server.resume())

    def _harm_server(
        self, name: str, how: str, planned: Planned, begin: Callable[[Any], object], end: Callable[[Any], object]
    ) -> bool:
        if name in self._down:
            return False
        self._down.add(name)
        server = getattr(self.system, name)
        line = self._note(f"{how} {name}", name, seconds=planned.seconds, harms=[name])
        begin(server)

        def undo() -> None:
            end(server)
            self._down.discard(name)

        self._struck.put((time.monotonic() + planned.seconds, line, undo))
        return True

    def _fail_over(self, planned: Planned, theme: str) -> bool:
        """The primary dies, and its replica takes its place; it comes back as the other's replica."""
        store = self.system.store
        if isinstance(store, Elected):
            # longer than the Sentinels look on
            return self._harm_primary("kill" if planned.how < 0.5 else "freeze", planned, 1.5 + planned.seconds)
        if not self.system.replica or "store" in self._down or not store.can_fail_over():
            return False
        self._down.add("store")
        line = self._note("fail over", "store", seconds=planned.seconds, harms=["store"])
        store.fail_over()
        for member in self.system.members:
            member.ways["store"].lead_to(store.port)

        def undo() -> None:
            store.follow()
            self._down.discard("store")

        self._struck.put((time.monotonic() + planned.seconds, line, undo))
        return True

    def _harm_primary(self, how: str, planned: Planned, seconds: float) -> bool:
        """The primary dies, or stands still; if that is long enough, the Sentinels replace it, and make a replica of it.

        It does not come back in the middle of that: see docs/how-to/redis-topologies.md for what would be lost then.
        """
        store = self.system.store
        if "store" in self._down or store.replicas() < 2 or store.is_doubted():
            return False
        self._down.add("store")
        victim = store.primary()
        line = self._note(f"{how} store", "store", seconds=seconds, harms=["store"])
        (victim.kill if how == "kill" else victim.pause)()
        back = False

        def undo() -> None:
            nonlocal back
            replaced = store.primary() is not victim
            if replaced:
                line["kind"] = f"fail over, {how}"
            if not back and (store.replicas() if replaced else not store.is_doubted()):
                (victim.start if how == "kill" else victim.resume)()
                back = True
            if back and store.replicas():
                self._down.discard("store")
            else:
                self._struck.put((time.monotonic() + 0.05, line, undo))

        self._struck.put((time.monotonic() + seconds, line, undo))
        return True

    def _full_disk(self, planned: Planned, theme: str) -> bool:
        disk = self.system.disk
        if not disk.can_be_full or "disk" in self._down:
            return False
        self._down.add("disk")
        line = self._note("full disk", "disk", seconds=planned.seconds, harms=["disk"])
        disk.fill()

        def undo() -> None:
            disk.empty()
            self._down.discard("disk")

        self._struck.put((time.monotonic() + planned.seconds, line, undo))
        return True

    # -- the network ---------------------------------------------------------------------------------------------------

    def _cut(self, planned: Planned, theme: str) -> bool:
        return self._harm_way("cut", planned, lambda way: way.cut())

    def _delay(self, planned: Planned, theme: str) -> bool:
        return self._harm_way("delay", planned, lambda way: way.delay(planned.how * 0.4))

    def _late_answers(self, planned: Planned, theme: str) -> bool:
        return self._harm_way("late answers", planned, lambda way: way.answer_late(planned.how * 3))

    def _black_hole(self, planned: Planned, theme: str) -> bool:
        return self._harm_way("black hole", planned, lambda way: way.black_hole())

    def _one_way(self, planned: Planned, theme: str) -> bool:
        return self._harm_way("one way", planned, lambda way: way.swallow_answers())

    def _harm_way(self, kind: str, planned: Planned, begin: Callable[[Any], object]) -> bool:
        ways = [
            (member, way)
            for member in self.system.members
            for way in ("store", "broker")
            if f"{member.name} {way}" not in self._down
        ]
        member, way = _one_of(ways, planned.who) or (None, None)
        if member is None:
            return False
        name, proxy = f"{member.name} {way}", member.ways[way]
        self._down.add(name)
        harms = [member.name, *([] if member.beat else ["worker", f"worker's {way}"])]
        seconds = 0.0 if kind == "cut" else planned.seconds
        line = self._note(kind, name, seconds=seconds, harms=harms)
        begin(proxy)

        def undo() -> None:
            if kind != "cut":
                proxy.restore()
            self._down.discard(name)

        self._struck.put((time.monotonic() + seconds, line, undo))
        return True


def _one_of(things: Any, number: float) -> Any:
    """Look a number in [0, 1) up among what is there; None where there is nothing."""
    return things[int(number * len(things))] if things else None
