"""What ``benchmarks/faults.py`` counts: histories with planted faults, each of which it must find."""

from __future__ import annotations

import pytest

from benchmarks.faults import Body, History, Row, judge_beats, judge_tasks, tables, without

SECONDS = [float(second) for second in range(1, 20)]


def beats(times, away=()):
    return judge_beats("it", 1, {"entry": times}, (0.0, 20.0), away)


def test_a_beat_that_sends_each_second_has_missed_and_doubled_nothing():
    row = beats(SECONDS)
    assert (row.lost, row.doubled, row.gap) == (0, 0, 1.0)


def test_seconds_without_a_message_are_missed_and_the_gap_is_told():
    row = beats([at for at in SECONDS if not 5 <= at <= 8])
    assert (row.lost, row.gap, row.open) == (4, 5.0, False)


def test_a_gap_that_is_still_there_at_the_end_is_open():
    row = beats(SECONDS[:10])
    assert (row.lost, row.gap, row.open) == (9, 10.0, True)


def test_what_two_beats_send_is_doubled():
    assert beats(sorted([*SECONDS, *(at + 0.01 for at in SECONDS)])).doubled >= len(SECONDS)


def test_a_message_that_comes_late_is_not_doubled_with_the_next():
    late = [at + 0.8 if at == 7 else at for at in SECONDS]
    assert (beats(late).doubled, beats(late).lost) == (0, 0)


def test_two_that_were_due_while_the_server_was_away_and_come_together_are_not_doubled():
    assert beats([*SECONDS[:6], 8.05, 8.1, *SECONDS[8:]], away=[(6.1, 8.0)]).doubled == 0
    assert beats([*SECONDS[:6], 8.05, 8.1, 8.15, *SECONDS[8:]], away=[(6.1, 8.0)]).doubled == 1


def test_what_comes_twice_after_a_gap_is_doubled():
    assert beats([*SECONDS[:4], 14.0, *(at for at in SECONDS[14:] for _ in "ab")]).doubled >= 3


def test_what_was_due_while_the_server_was_away_is_not_missed():
    assert beats([at for at in SECONDS if not 5 <= at <= 8], away=[(4.5, 8.5)]).lost == 0
    assert without((4.0, 9.0), [(4.5, 8.5), (20.0, 30.0)]) == pytest.approx(1.0)


class Told(History):
    """A history that is told line by line."""

    def __init__(self) -> None:
        super().__init__(watched=(0.0, 20.0))

    def run(self, call, start, end=None, *, key="k", pid=1, what="end"):
        self.told.append({"what": "sent", "at": start, "call": call, "key": key})
        self.told.append({"what": "enter", "at": start, "call": call, "key": key, "pid": pid})
        if end is not None:
            self.told.append({"what": what, "at": end, "call": call, "key": key, "pid": pid})
        return self

    def judge(self):
        return judge_tasks("it", 1, self)


def test_bodies_that_follow_each_other_break_nothing():
    row = Told().run(1, 1, 4).run(2, 4.1, 8).run(3, 8.2, 20).judge()
    assert (row.lost, row.doubled, row.overlapped) == (0, 0, 0)
    assert row.gap == pytest.approx(0.2)


def test_two_bodies_of_one_key_overlap_and_of_two_keys_do_not():
    assert Told().run(1, 1, 4).run(2, 3, 8, pid=2).judge().overlapped == 1
    assert Told().run(1, 1, 4).run(2, 3, 8, pid=2, key="other").judge().overlapped == 0


def test_a_body_that_nobody_killed_goes_on():
    history = Told().run(1, 1).run(2, 3, 8, pid=2)
    assert history.judge().overlapped == 1
    history.killed[1] = 2.0
    assert history.judge().overlapped == 0


def test_a_frozen_body_is_not_at_work_until_it_is_thawed():
    history = Told().run(1, 1, 9.1, what="stopped").run(2, 4, 7, pid=2)
    history.frozen.append((1, (2.0, 9.0)))
    assert history.judge().overlapped == 0
    thawed = Told().run(1, 1, 9.5).run(2, 4, 7, pid=2).run(3, 8, 10, pid=3)
    thawed.frozen.append((1, (2.0, 9.0)))
    assert thawed.judge().overlapped == 1


def test_a_call_that_was_accepted_and_never_ended_is_lost_and_one_that_was_refused_is_not():
    history = Told().run(1, 1)
    assert history.judge().lost == 1
    history.told.append({"what": "refused", "at": 3.0, "call": 1})
    assert history.judge().lost == 0


def test_a_call_that_ends_twice_is_doubled():
    assert Told().run(1, 1, 4).run(1, 5, 8, pid=2).judge().doubled == 1


def test_a_key_under_which_nobody_works_is_an_orphan_as_long_as_that_lasts():
    history = Told().run(1, 1).run(2, 12, 20, pid=2)
    history.killed[1] = 2.0
    assert (history.judge().gap, history.judge().open) == (10.0, False)
    history.away.append((3.0, 5.0))
    assert history.judge().gap == 8.0
    forever = Told().run(1, 1)
    forever.killed[1] = 2.0
    assert (forever.judge().gap, forever.judge().open) == (18.0, True)


def test_the_tables_show_what_was_counted():
    text = tables([Row("beat", 6, 1234, 5, 6, None, 7.89, True), Row("lock", 7, 99, 1, 2, 3, 4.0)])
    assert "| beat | 6 | 1,234 | 5 | 6 | 0 | >7.9 s |" in text
    assert "| lock | 7 | 99 | 1 | 2 | 3 | 4.0 s |" in text
    assert Body("k", 1, 2, 0.0).work([], 5.0) == [(0.0, 5.0)]
