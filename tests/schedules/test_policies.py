"""What is said of the ticks of an entry: what is refused, what is put off, and by how much."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab, schedule

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.schedules import Cron, Every, Once
from celery_lockbeat.schedules.dues import check_policy
from celery_lockbeat.schedules.policy import POLICY_NAMES, Policy

UTC = timezone.utc
START = datetime(2026, 6, 1, tzinfo=UTC)
END = datetime(2026, 7, 1, tzinfo=UTC)
NAIVE = datetime(2026, 6, 1)

ALL = {
    "jitter": 30.0,
    "start": START,
    "end": END,
    "max_runs": 7,
    "catchup": "all",
    "catchup_limit": 5,
    "catchup_window": 600.0,
    "start_within": 60.0,
    "run_at_start": True,
    "pause_after_failures": 3,
}


def test_each_keyword_is_read_and_said_again_where_it_is_not_the_default():
    assert set(ALL) == set(POLICY_NAMES)
    assert Policy.read({}, owner="x") == Policy()
    assert Policy().as_keywords() == {}
    policy = Policy.read(ALL, owner="x")
    assert policy.as_keywords() == ALL
    assert Policy.read(policy.as_keywords(), owner="x") == policy
    assert Policy.read(dict.fromkeys(POLICY_NAMES), owner="x") == Policy()


def test_durations_may_be_timedeltas_and_whole_numbers():
    policy = Policy.read(
        {"jitter": timedelta(minutes=1), "start_within": 5, "catchup_window": timedelta(hours=1)}, owner="x"
    )
    assert (policy.jitter, policy.start_within, policy.catchup_window) == (60.0, 5.0, 3600.0)
    assert all(isinstance(each, float) for each in (policy.jitter, policy.start_within, policy.catchup_window))


def test_single_keywords_are_put_over_a_policy_and_taken_off_it():
    policy = Policy.read(ALL, owner="x")
    assert policy.over({"jitter": 5, "end": None}, owner="x").as_keywords() == {
        **{name: value for name, value in ALL.items() if name != "end"},
        "jitter": 5.0,
    }
    with pytest.raises(
        ConfigurationError,
        match=r"end of entries is '2026-05-01T00:00:00\+00:00'; allowed: a time after start, 2026-06-01",
    ):
        policy.over({"end": datetime(2026, 5, 1, tzinfo=UTC)}, owner="entries")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"jitter": -1}, r"jitter of Cron is -1; allowed: seconds, a number from 0 to 31104000"),
        ({"jitter": "5"}, r"jitter of Cron is '5'"),
        ({"jitter": True}, r"jitter of Cron is True"),
        ({"jitter": float("nan")}, r"jitter of Cron is nan"),
        ({"jitter": timedelta(seconds=-1)}, r"jitter of Cron is -1"),
        ({"start": NAIVE}, r"start of Cron is '2026-06-01T00:00:00'; allowed: a datetime with a timezone, such as"),
        ({"start": "2026-06-01"}, r"start of Cron is '2026-06-01'; allowed: a datetime with a timezone"),
        ({"end": NAIVE}, r"end of Cron is"),
        ({"end": 5}, r"end of Cron is 5"),
        ({"start": START, "end": START}, r"end of Cron is .*; allowed: a time after start"),
        ({"start": END, "end": START}, r"end of Cron is .*; allowed: a time after start"),
        ({"max_runs": 0}, r"max_runs of Cron is 0; allowed: a whole number from 1"),
        ({"max_runs": 1.5}, r"max_runs of Cron is 1.5"),
        ({"max_runs": True}, r"max_runs of Cron is True"),
        ({"catchup": "some"}, r"catchup of Cron is 'some'; allowed: 'latest', 'all', 'none'"),
        ({"catchup": True}, r"catchup of Cron is True"),
        ({"catchup_limit": 0}, r"catchup_limit of Cron is 0"),
        ({"catchup_window": 0}, r"catchup_window of Cron is 0"),
        ({"start_within": 0}, r"start_within of Cron is 0"),
        ({"start_within": 1e12}, r"start_within of Cron is"),
        ({"pause_after_failures": 0}, r"pause_after_failures of Cron is 0; allowed: a whole number from 1 to 100"),
        ({"pause_after_failures": 101}, r"pause_after_failures of Cron is 101"),
        ({"pause_after_failures": True}, r"pause_after_failures of Cron is True"),
        ({"run_at_start": 1}, r"run_at_start of Cron is 1"),
        ({"jiter": 5}, r"jiter of Cron is not an option.*did you mean jitter\?.*allowed: jitter, start, end, max_runs"),
    ],
)
def test_what_is_wrong_is_refused_with_the_keyword_its_value_and_what_is_allowed(wrong, told):
    with pytest.raises(ConfigurationError, match=told):
        Cron("0 * * * *", **wrong)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Cron("0 * * * *", jitter=3601), r"jitter of Cron is 3601.*allowed: at most 3600 seconds"),
        (lambda: Cron("0 8,9,12 * * *", jitter=3601), r"at most 3600 seconds"),
        (lambda: Every(10, jitter=11), r"jitter of Every is 11.*allowed: at most 10 seconds"),
        (lambda: Every(0.5, catchup="all"), r"catchup of Every is 'all'; allowed: 'latest' or 'none'"),
        (lambda: Cron("0 * * * *", run_at_start=True), r"run_at_start of Cron is True; allowed: False"),
        (lambda: Once(after=5, start=START), r"start of Once is not an option"),
        (lambda: Once(after=5, pause_after_failures=2), r"pause_after_failures of Once is not an option"),
        (lambda: Once(at=START, max_runs=2), r"max_runs of Once is not an option"),
        (lambda: Once(at=NAIVE), r"at of Once is '2026-06-01T00:00:00'; allowed: a datetime with a timezone"),
        (Once, r"the time of Once is None; allowed: after=seconds, or at=datetime"),
        (lambda: Once(at=START, after=5), r"at of Once is .*; allowed: either after=seconds, or at=datetime"),
        (lambda: Once(after=-1), r"the time of Once is -1; allowed: seconds, a number from 0"),
        (lambda: Every(0), r"the time of Every is 0; allowed: seconds, a number from 0.001"),
        (lambda: Every("10"), r"the time of Every is '10'"),
        (
            lambda: Cron("0 * * * *", timezone="Mars"),
            r"timezone of Cron is 'Mars'; allowed: a name such as 'Europe/Berlin'",
        ),
        (lambda: Cron("0 * * * *", timezone=5), r"timezone of Cron is 5"),
        (lambda: Cron("0 * * * *", timezone="../etc/passwd"), r"timezone of Cron is"),
    ],
)
def test_what_does_not_fit_a_schedule_is_refused(make, told):
    with pytest.raises(ConfigurationError, match=told):
        make()


def test_a_jitter_as_long_as_the_shortest_gap_and_one_of_what_comes_once_are_allowed():
    assert Cron("0 * * * *", jitter=3600).policy.jitter == 3600
    assert Every(10, jitter=10).policy.jitter == 10
    assert Once(at=START, jitter=10**6).policy.jitter == 10**6


@pytest.mark.parametrize(
    ("when", "keywords", "told"),
    [
        (crontab(minute=0), {"jitter": 3601}, r"jitter of lockbeat_entries\['a'\] is 3601.*at most 3600"),
        (crontab(minute=0), {"run_at_start": True}, r"run_at_start of lockbeat_entries\['a'\]"),
        (schedule(0.5), {"catchup": "all"}, r"catchup of lockbeat_entries\['a'\] is 'all'"),
        (schedule(5), {"jitter": 6}, r"at most 5"),
        (Once(at=START), {"max_runs": 5}, r"max_runs of lockbeat_entries\['a'\] is 5; allowed: nothing"),
    ],
)
def test_a_policy_that_others_give_is_checked_against_the_schedule_of_whatever_kind(when, keywords, told):
    policy = Policy.read(keywords, owner="lockbeat_entries['a']")
    with pytest.raises(ConfigurationError, match=told):
        check_policy(when, policy, owner="lockbeat_entries['a']")


def test_what_fits_is_not_refused():
    check_policy(schedule(5), Policy(run_at_start=True, jitter=5), owner="x")
    check_policy(crontab(), Policy(catchup="all", jitter=60, max_runs=3), owner="x")
    check_policy(Once(at=START), Policy(jitter=5, catchup="none"), owner="x")
    check_policy(object(), Policy(jitter=5), owner="x")


def test_a_policy_allows_ticks_from_its_start_on_and_before_its_end():
    policy = Policy(start=START, end=END)
    second = timedelta(seconds=1)
    assert [policy.allows(at) for at in (START - second, START, END - second, END)] == [False, True, True, False]
    assert Policy().allows(START)


# -- jitter ------------------------------------------------------------------------------------------------------------


def test_the_offset_of_a_tick_is_the_same_wherever_it_is_computed():
    policy = Policy(jitter=100)
    assert policy.offset("report", START) == pytest.approx(10.947961220517755, abs=1e-6)
    berlin = START.astimezone(ZoneInfo("Europe/Berlin"))
    assert policy.offset("report", berlin) == policy.offset("report", START)
    through_a_store = datetime.fromisoformat((START + timedelta(microseconds=400)).isoformat(timespec="milliseconds"))
    assert policy.offset("report", START + timedelta(microseconds=400)) == policy.offset("report", through_a_store)


def test_offsets_are_spread_over_the_jitter_by_entry_and_by_tick():
    policy = Policy(jitter=60)
    for offsets in (
        [policy.offset(f"entry-{number}", START) for number in range(6000)],
        [policy.offset("report", START + timedelta(hours=number)) for number in range(6000)],
    ):
        assert all(0 <= offset < 60 for offset in offsets)
        for begin in range(0, 60, 6):
            assert 500 < sum(begin <= offset < begin + 6 for offset in offsets) < 700


def test_without_jitter_nothing_is_put_off():
    assert Policy().offset("report", START) == 0.0
