"""Cron expressions: each example of the documentation of Debian's cron and of cronsim, what is ours on top, and what is refused."""

from __future__ import annotations

from collections import Counter
from datetime import date, datetime, timedelta, timezone
from itertools import islice

import pytest
from celery import Celery
from celery.schedules import crontab
from hypothesis import given
from hypothesis import strategies as st

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.schedules import Cron
from celery_lockbeat.schedules.dues import iter_dues, next_due, previous_due, shortest_gap

UTC = timezone.utc
START = datetime(2020, 1, 1, tzinfo=UTC) - timedelta(seconds=1)
APP = Celery("expressions", set_as_current=False)
APP.conf.timezone = "UTC"


def dues(expression: str, number: int = 5, *, after: datetime = START, name: str | None = None) -> list[str]:
    when = Cron(expression, timezone="UTC")
    when = when if name is None else when.bound_to(name)
    return [due.strftime("%Y-%m-%d %H:%M:%S") for due in islice(iter_dues(when, after), number)]


def days(expression: str, number: int = 5) -> list[str]:
    return [due[:10] for due in dues(expression, number)]


# -- crontab(5) of Debian ----------------------------------------------------------------------------------------------


def test_five_minutes_after_midnight_each_day():
    assert dues("5 0 * * *", 2) == ["2020-01-01 00:05:00", "2020-01-02 00:05:00"]


def test_at_a_quarter_past_two_on_the_first_of_each_month():
    assert dues("15 14 1 * *", 3) == ["2020-01-01 14:15:00", "2020-02-01 14:15:00", "2020-03-01 14:15:00"]


def test_at_ten_on_weekdays():
    assert dues("0 22 * * 1-5", 4) == [f"2020-01-{day} 22:00:00" for day in ("01", "02", "03", "06")]


def test_23_minutes_after_midnight_two_four_and_so_on():
    assert dues("23 0-23/2 * * *", 3) == [f"2020-01-01 {hour}:23:00" for hour in ("00", "02", "04")]


def test_five_after_four_each_sunday():
    assert dues("5 4 * * sun", 2) == ["2020-01-05 04:05:00", "2020-01-12 04:05:00"]


def test_each_fourth_hour_on_the_first_and_on_each_monday():
    assert dues("0 */4 1 * mon", 8)[5:] == ["2020-01-01 20:00:00", "2020-01-06 00:00:00", "2020-01-06 04:00:00"]


def test_midnight_on_each_sunday_that_has_an_uneven_date():
    assert days("0 0 */2 * sun", 4) == ["2020-01-05", "2020-01-19", "2020-02-09", "2020-02-23"]


def test_on_the_first_and_fifteenth_and_each_friday():
    assert days("30 4 1,15 * 5") == ["2020-01-01", "2020-01-03", "2020-01-10", "2020-01-15", "2020-01-17"]


def test_from_the_eighth_to_the_fourteenth():
    assert days("0 4 8-14 * *", 8)[6:] == ["2020-01-14", "2020-02-08"]


def test_lists_of_ranges_and_names_of_months():
    assert dues("0 1-2,12-14 * nov *", 6) == [
        *(f"2020-11-01 {hour}:00:00" for hour in ("01", "02", "12", "13", "14")),
        "2020-11-02 01:00:00",
    ]


@pytest.mark.parametrize(
    ("alias", "fields"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        (" @Daily ", "0 0 * * *"),
    ],
)
def test_the_names_of_cron_say_what_its_fields_do(alias, fields):
    assert dues(alias) == dues(fields)
    assert Cron(alias) == Cron(fields)


# -- cronsim's README --------------------------------------------------------------------------------------------------


def test_a_fifth_monday_in_february():
    expected = ["2044-02-29", "2072-02-29", "2112-02-29", "2140-02-29", "2168-02-29"]
    found = [next(iter_dues(Cron("0 0 * 2 MON#5", timezone="UTC"), START))]
    for _ in range(4):
        found.append(next_due(Cron("0 0 * 2 MON#5", timezone="UTC"), found[-1]))
    assert [due.strftime("%Y-%m-%d") for due in found] == expected
    assert previous_due(Cron("0 0 * 2 MON#5", timezone="UTC"), START) == datetime(2016, 2, 29, tzinfo=UTC)


def test_every_fifteen_seconds():
    assert dues("*/15 * * * * *") == [
        *(f"2020-01-01 00:00:{second}" for second in ("00", "15", "30", "45")),
        "2020-01-01 00:01:00",
    ]


def test_the_last_day_the_last_weekday_the_last_saturday_and_the_first_monday_of_each_month():
    assert days("0 0 L * *", 3) == ["2020-01-31", "2020-02-29", "2020-03-31"]
    assert days("0 0 LW * *", 5) == ["2020-01-31", "2020-02-28", "2020-03-31", "2020-04-30", "2020-05-29"]
    assert days("0 0 * * 6L", 3) == ["2020-01-25", "2020-02-29", "2020-03-28"]
    assert days("0 0 * * MON#1", 3) == ["2020-01-06", "2020-02-03", "2020-03-02"]


def test_every_fifth_minute_from_nine_to_five():
    found = dues("*/5 9-17 * * *", 109)
    assert (found[0], found[107], found[108]) == ("2020-01-01 09:00:00", "2020-01-01 17:55:00", "2020-01-02 09:00:00")


# -- what is ours ------------------------------------------------------------------------------------------------------


def test_the_third_day_before_the_last():
    assert days("0 0 L-3 * *", 3) == ["2020-01-28", "2020-02-26", "2020-03-28"]
    assert days("0 0 L-0 * *", 2) == ["2020-01-31", "2020-02-29"]
    assert days("0 0 1,L-1 * *", 4) == ["2020-01-01", "2020-01-30", "2020-02-01", "2020-02-28"]
    assert days("0 0 L-1 * mon", 3) == ["2020-01-06", "2020-01-13", "2020-01-20"]  # or, as cron has it
    assert days("0 0 L-30 * *", 3) == ["2020-01-01", "2020-03-01", "2020-05-01"]


def test_names_may_be_long_or_short_in_any_case():
    assert dues("0 0 * January Monday") == dues("0 0 * 1 1") == dues("0 0 * JAN mon")
    assert days("0 0 * * friL", 2) == days("0 0 * * 5L", 2) == ["2020-01-31", "2020-02-28"]
    assert days("0 0 * * friday#2", 2) == days("0 0 * * 5#2", 2)


def test_a_range_may_go_round_as_celerys():
    assert days("0 0 * * fri-mon", 5) == ["2020-01-03", "2020-01-04", "2020-01-05", "2020-01-06", "2020-01-10"]
    assert [due[11:13] for due in dues("0 22-3/2 * * *", 4)] == ["00", "02", "22", "00"]
    assert days("0 0 1 nov-feb *", 5) == ["2020-01-01", "2020-02-01", "2020-11-01", "2020-12-01", "2021-01-01"]


def test_a_range_of_one_is_that_one():
    assert dues("5-5/10 * * * *", 2) == ["2020-01-01 00:05:00", "2020-01-01 01:05:00"]


def numbers(expression: str, name: str, field: str, dues: int = 3) -> list[int]:
    when = Cron(expression, timezone="UTC").bound_to(name)
    return sorted({getattr(due, field) for due in islice(iter_dues(when, START), dues)})


@pytest.mark.parametrize(
    ("expression", "field", "low", "high"),
    [("H * * * * *", "second", 0, 59), ("H * * * *", "minute", 0, 59), ("0 H * * *", "hour", 0, 23), ("0 0 H * *", "day", 1, 28), ("0 0 1 H *", "month", 1, 12), ("0 H(2-4) * * *", "hour", 2, 4)],
)  # fmt: skip
def test_h_is_one_number_for_a_name_and_each_in_its_range_for_many(expression, field, low, high):
    chosen = [numbers(expression, f"entry-{number}", field) for number in range(600)]
    assert all(len(each) == 1 for each in chosen)
    count = Counter(each[0] for each in chosen)
    assert set(count) == set(range(low, high + 1))
    # evenly: none has three times its share
    assert max(count.values()) < 3 * 600 / (high - low + 1)


def test_h_with_a_step_begins_somewhere_in_the_first_of_them():
    found = {tuple(numbers("H/15 * * * *", f"entry-{number}", "minute", 8)) for number in range(200)}
    assert found == {tuple(range(first, 60, 15)) for first in range(15)}
    assert {tuple(numbers("H(0-29)/10 * * * *", f"e{number}", "minute", 8)) for number in range(100)} == {
        (first, first + 10, first + 20) for first in range(10)
    }


def test_h_is_the_same_in_each_process_and_release():
    assert dues("H H(2-4) * * *", 1, name="report") == ["2020-01-01 03:43:00"]
    assert dues("H H * * *", 1, name="report-1") != dues("H H * * *", 1, name="report-2")


def test_h_is_decided_by_the_expression_as_long_as_there_is_no_name():
    assert dues("H H * * *") == dues("H H * * *")
    assert dues("H H * * *", 1) != dues("H  H 1-31 * *", 1)


def test_h_in_two_fields_is_not_the_same_number():
    same = sum(
        len(
            set(numbers("H H(0-59) * * * *", f"entry-{number}", "minute"))
            & set(numbers("H H(0-59) * * * *", f"entry-{number}", "second"))
        )
        for number in range(100)
    )
    assert same < 20


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("123 * * * *", r"minute of Cron is '123' \(in '123 \* \* \* \*': Bad minute\); allowed: 0-59, \*, H, lists"),
        ("60 * * * * *", r"second of Cron is '60'"),
        ("* 24 * * *", r"hour of Cron is '24'.*allowed: 0-23"),
        ("* * 0 * *", r"day_of_month of Cron is '0'.*allowed: 1-31"),
        ("* * 32 * *", r"day_of_month of Cron is '32'"),
        ("* * L-31 * *", r"day_of_month of Cron is 'L-31'"),
        ("* * L-x * *", r"day_of_month of Cron is 'L-x'"),
        ("* * ? * *", r"day_of_month of Cron is '\?'"),
        ("* * * 13 *", r"month_of_year of Cron is '13'.*allowed: 1-12 or jan-dec"),
        ("* * * * 8", r"day_of_week of Cron is '8'.*allowed: 0-6 or sun-sat, 5#2, 5L"),
        ("* * * * 5#6", r"day_of_week of Cron is '5#6'"),
        ("* * * * 5#0", r"day_of_week of Cron is '5#0'"),
        ("* * * * moonday", r"day_of_week of Cron is 'moonday'"),
        ("* * * * xyzL", r"day_of_week of Cron is 'xyzL'"),
        ("*/0 * * * *", r"minute of Cron is '\*/0'"),
        ("1-5/0 * * * *", r"minute of Cron is '1-5/0'"),
        ("5-x * * * *", r"minute of Cron is '5-x'"),
        ("1,,2 * * * *", r"minute of Cron is '1,,2'"),
        ("H/0 * * * *", r"minute of Cron is 'H/0'"),
        ("H/61 * * * *", r"minute of Cron is 'H/61'"),
        ("H(5-2) * * * *", r"minute of Cron is 'H\(5-2\)'"),
        ("H(0-60) * * * *", r"minute of Cron is 'H\(0-60\)'"),
        ("Hx * * * *", r"minute of Cron is 'Hx'"),
        ("0 H(22-25) * * *", r"hour of Cron is 'H\(22-25\)'"),
        ("* * * *", r"expression of Cron is '\* \* \* \*'; allowed: five fields, minute hour day_of_month"),
        ("* * * * * * *", r"six, of which the first are the seconds; @yearly"),
        ("@reboot", r"expression of Cron is '@reboot'"),
        ("", r"expression of Cron is ''"),
        (5, r"expression of Cron is 5; allowed: five fields"),
        (None, r"expression of Cron is None"),
        (["0"], r"expression of Cron is \['0'\]"),
        ("9" * 5000 + " * * * *", r"minute of Cron is"),
        # dates that there are not
        ("0 0 30 2 *", r"expression of Cron is '0 0 30 2 \*'.*allowed: a date that there is"),
        ("0 0 31 4,6,9,11 *", r"a date that there is"),
        ("0 0 L-29 2 *", r"a date that there is"),
        ("* * */20 * 1L", r"a date that there is"),
    ],
)
def test_a_wrong_expression_is_refused_with_its_field_its_value_and_what_is_allowed(expression, told):
    with pytest.raises(ConfigurationError, match=told):
        Cron(expression)


# -- beside Celery's ---------------------------------------------------------------------------------------------------

FIELD = st.one_of(
    st.just("*"),
    st.integers(2, 9).map("*/{}".format),
    st.integers(1, 6).map(str),
    st.lists(st.integers(1, 6), min_size=2, max_size=3).map(lambda some: ",".join(map(str, some))),
    st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda both: "{}-{}".format(*both)),
)


@given(st.tuples(FIELD, FIELD, FIELD, FIELD, FIELD), st.integers(0, 400 * 86400))
def test_what_celery_can_say_is_due_as_celerys_fields_say(fields, seconds):
    minute, hour, day, month, weekday = fields
    when = Cron(" ".join(fields), timezone="UTC")
    restricted = not day.startswith("*") and not weekday.startswith("*")
    assert isinstance(when, crontab) == (not restricted)
    after = START + timedelta(seconds=seconds)
    theirs = crontab(minute, hour, weekday, day, month, app=APP)
    if isinstance(when, crontab):
        assert (when.minute, when.hour, when.day_of_week) == (theirs.minute, theirs.hour, theirs.day_of_week)
        assert next_due(when, after) == next_due(theirs, after)
        assert previous_due(when, after) == previous_due(theirs, after)
        assert shortest_gap(when) == shortest_gap(theirs)


# -- gaps --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "seconds"),
    [
        ("* * * * * *", 1),
        ("*/20 * * * * *", 20),
        ("0,59 * * * * *", 1),
        ("* * * * *", 60),
        ("*/7 * * * *", 4 * 60),
        ("0 9,17 * * *", 8 * 3600),
        ("50,10 * * * *", 20 * 60),
        ("0 23,0 * * *", 3600),
        ("0 0 * * *", 86400),
        ("0 0 * * mon", 7 * 86400),
        ("0 0 * * mon,wed", 2 * 86400),
        ("0 23 31 * *", 31 * 86400),
        ("0 0 1,31 * *", 86400),
        ("0 0 29 2 *", 4 * 365 * 86400 + 86400),
        ("0 0 1 1 *", 365 * 86400),
    ],
)
def test_the_shortest_gap_is_the_least_time_between_two_ticks(expression, seconds):
    assert shortest_gap(Cron(expression)) == seconds


def test_days_are_as_many_as_there_are():
    last_days = days("0 0 L * *", 48)
    expected = [date(2020 + month // 12, month % 12 + 1, 1) - timedelta(days=1) for month in range(1, 49)]
    assert last_days == [each.isoformat() for each in expected]
