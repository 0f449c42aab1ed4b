"""Instants: RFC 3339 text to int64 microseconds UTC and back."""

import random
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from models.errors import InstantError
from models.instants import FOREVER, NEVER, RFC3339, format_column, format_instant, parse, parse_column

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """The instant of an aware datetime, by Python's own calendar."""
    return (moment - EPOCH) // MICROSECOND


def moments(count: int) -> list[datetime]:
    """Moments of all four-digit years that Python knows, in many zones, with and without microseconds."""
    rng = random.Random(7)
    first, last = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
    result = []
    for _ in range(count):
        moment = first + MICROSECOND * rng.randrange((last - first) // MICROSECOND)
        zone = timezone(timedelta(minutes=rng.randrange(-23 * 60 - 59, 24 * 60)))
        result.append((moment if rng.random() < 0.5 else moment.replace(microsecond=0)).astimezone(zone))
    return result


@pytest.mark.parametrize(
    ("written", "instant"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2024-02-29T12:00:00Z", micros(datetime(2024, 2, 29, 12, tzinfo=UTC))),
        ("2024-01-01T05:30:00+05:30", micros(datetime(2024, 1, 1, tzinfo=UTC))),
        ("2023-12-31T16:00:00-08:00", micros(datetime(2024, 1, 1, tzinfo=UTC))),
        ("2024-01-01T00:00:00+00:00", micros(datetime(2024, 1, 1, tzinfo=UTC))),
        ("2024-01-01T00:00:00-00:00", micros(datetime(2024, 1, 1, tzinfo=UTC))),
        ("2024-01-01T23:59:00+23:59", micros(datetime(2024, 1, 1, tzinfo=UTC))),
        ("2024-01-01T00:00:00.5Z", micros(datetime(2024, 1, 1, tzinfo=UTC)) + 500_000),
        ("2024-01-01T00:00:00.123456789Z", micros(datetime(2024, 1, 1, tzinfo=UTC)) + 123_456),
        ("2024-01-01T00:00:00.1234567+00:00", micros(datetime(2024, 1, 1, tzinfo=UTC)) + 123_456),
        ("9999-12-31T23:59:59.999999999Z", micros(datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))),
        ("0001-01-01T00:00:00Z", micros(datetime(1, 1, 1, tzinfo=UTC))),
    ],
)
def test_text_is_the_instant_it_says(written: str, instant: int) -> None:
    """Zones, leap days, fractions and years far away are read as written; below a microsecond digits are cut off."""
    assert parse(written) == instant
    assert parse_column([written, written]).tolist() == [instant, instant]


def test_columns_agree_with_pythons_calendar() -> None:
    """A column of many zones, half of them with microseconds, is what datetime makes of each text."""
    expected = moments(2000)
    assert parse_column([moment.isoformat() for moment in expected]).tolist() == [micros(m) for m in expected]
    assert [parse(moment.isoformat()) for moment in expected[:50]] == [micros(m) for m in expected[:50]]


def test_instants_are_written_as_pythons_calendar_writes_them() -> None:
    """Instants are written in UTC with a Z, with six digits below the second or none if they are zero."""
    instants = [micros(moment) for moment in moments(500)]
    written = format_column(np.array(instants, dtype=np.int64))
    utc = [EPOCH + MICROSECOND * instant for instant in instants]
    assert written == [m.isoformat(timespec="microseconds" if m.microsecond else "seconds")[:-6] + "Z" for m in utc]


def test_writing_and_reading_give_the_instant_back() -> None:
    """What was written is read back exactly, before 1970 too."""
    instants = np.array([-62_135_596_800_000_000, -1, 0, 1, 999_999, 1_000_000, 1_704_067_200_000_001], dtype=np.int64)
    assert parse_column(format_column(instants)).tolist() == instants.tolist()
    assert [parse(format_instant(instant)) for instant in instants.tolist()] == instants.tolist()


def test_no_text_and_no_instant() -> None:
    """An empty column is read and written as an empty column."""
    assert parse_column([]).tolist() == []
    assert format_column(np.empty(0, dtype=np.int64)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "", "NaT", "now", "2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00:00Z", "2024-01-01T00:00Z",
        "2024-01-01T00:00:00.Z", "2024-01-01T00:00:00.1234567890Z", "2024-01-01T00:00:00z", "24-01-01T00:00:00Z",
        "+2024-01-01T00:00:00Z", "-2024-01-01T00:00:00Z", "12024-01-01T00:00:00Z", "2024-01-01T00:00:00+0000",
        "2024-01-01T00:00:00 Z", " 2024-01-01T00:00:00Z", "２０２４-01-01T00:00:00Z", "1704067200",
    ],
)  # fmt: skip
def test_other_shapes_are_refused(wrong: str) -> None:
    """A text that is not RFC 3339 with an offset is refused, and the error shows how to write one."""
    with pytest.raises(InstantError, match="write it like 2024-01-31T09:30:00Z"):
        parse(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        "2023-02-29T00:00:00Z", "2024-02-30T00:00:00Z", "2024-13-01T00:00:00Z", "2024-00-01T00:00:00Z",
        "2024-01-00T00:00:00Z", "2024-01-01T24:00:00Z", "2024-01-01T00:60:00Z", "2024-12-31T23:59:60Z",
        "2024-01-01T00:00:00+24:00", "2024-01-01T00:00:00-00:60",
    ],
)  # fmt: skip
def test_unreal_dates_are_refused(wrong: str) -> None:
    """A well-shaped text that no calendar or clock has is refused, alone and in a column."""
    with pytest.raises(InstantError, match="no real date and time"):
        parse(wrong)
    with pytest.raises(InstantError):
        parse_column(["2024-01-01T00:00:00Z", wrong])


@pytest.mark.parametrize("end", ["00Z\n", "00.120000Z\n", "00+00:00\n"])
def test_a_trailing_line_feed_is_refused(end: str) -> None:
    """A line feed after the text is not part of an instant: refused for its shape, without a warning."""
    with pytest.raises(InstantError, match="write it like"):
        parse(f"2024-01-01T00:00:{end}")


@pytest.mark.parametrize("text", ["0000-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_years_that_no_text_can_say_are_refused(text: str) -> None:
    """An instant that is in the year -1 or 10000 of UTC could not be published again."""
    with pytest.raises(InstantError):
        parse(text)


def test_absent_instants_lie_outside_all_years() -> None:
    """NEVER and FOREVER are further away than any text can say, and durations can be added to them."""
    assert parse("0000-01-01T00:00:00Z") - NEVER > 36_500 * 86_400_000_000
    assert FOREVER - parse("9999-12-31T23:59:59Z") > 36_500 * 86_400_000_000
    assert abs(NEVER) + 2 * 36_500 * 86_400_000_000 < 2**63
    assert RFC3339.startswith("^")
    assert RFC3339.endswith("$")


@pytest.mark.parametrize(
    "texts",
    [
        ["2024-02-29T12:00:00Z", "1970-01-01T00:00:00Z"],
        ["2024-02-29T12:00:00.123456+00:00", "0001-01-01T00:00:00.000001+00:00"],
        ["2024-02-29T12:00:00.123456789Z", "2024-02-29T12:00:00.999999999Z"],
        ["2024-02-29T12:00:00+05:30", "2024-02-29T12:00:00+00:00"],
        ["2024-02-29T12:00:00+00:00", "2024-02-29T12:00:00.1234Z"],
    ],
)
def test_a_column_is_read_as_each_of_its_texts(texts: list[str]) -> None:
    """Equally long texts in UTC are read all at once, others one by one: with the same result."""
    assert parse_column(texts).tolist() == [parse_column([text, "1970-01-01T00:00:00-01:00"])[0] for text in texts]


def test_one_impossible_date_among_equally_long_ones_is_found() -> None:
    with pytest.raises(InstantError):
        parse_column(["2024-02-29T12:00:00Z", "2023-02-29T12:00:00Z"])
