# cython: language_level=3, wraparound=False, cdivision=True
"""Purchases: what nearly every record on their topic is, from JSON to columns, without an object for each field.

pydantic says what an event is (models/events.py). Here a record is taken only if it is so plain that it must be one: an
object of the known fields, each once and as expected, its texts without escapes. All others are left to pydantic.

CPython ends each ``bytes`` with a NUL, at which everything here stops, for no JSON has one: nothing is read beyond it.
"""

from typing import NamedTuple

import numpy as np

from models.events import LONGEST_TEXT, Kind
from models.money import LARGEST_AMOUNT, exponent

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int8_t, int64_t
from libc.string cimport memcmp

ctypedef const unsigned char* Bytes

cdef int8_t PURCHASE = Kind.PURCHASE.value
cdef int8_t REFUND = Kind.REFUND.value
cdef Py_ssize_t LONGEST = LONGEST_TEXT
cdef int64_t LARGEST = LARGEST_AMOUNT

cdef enum:
    KIND, EVENT_ID, CUSTOMER_ID, ORDER_ID, OCCURRED_AT, AMOUNT, CURRENCY, COUNTRY, CHANNEL, CATEGORY, ATTRIBUTES
    FIELDS

cdef enum:
    #: The fields that every purchase has, as bits.
    REQUIRED = (1 << COUNTRY) - 1
    #: A double holds so many digits exactly.
    MOST_DIGITS = 15
    #: Python writes a smaller number with an exponent.
    MOST_DECIMALS = 4
    #: Digits of an amount before and after the point, as in AMOUNT of models/events.py.
    WHOLE = 13
    DECIMALS = 6
    #: Texts of a column that are found without making an object.
    FIRST = 16


cdef struct Span:
    # NULL where the field is absent or null.
    Bytes at
    Py_ssize_t size
    bint ascii


cdef inline bint _is(Span text, const char* name, Py_ssize_t size) noexcept nogil:
    return text.size == size and memcmp(text.at, name, size) == 0


cdef inline int _field(Span name) noexcept nogil:
    """Which field is called so; FIELDS if none is."""
    if name.size == 4:
        return KIND if _is(name, "kind", 4) else FIELDS
    if name.size == 6:
        return AMOUNT if _is(name, "amount", 6) else FIELDS
    if name.size == 7:
        return COUNTRY if _is(name, "country", 7) else CHANNEL if _is(name, "channel", 7) else FIELDS
    if name.size == 8:
        if _is(name, "event_id", 8):
            return EVENT_ID
        if _is(name, "order_id", 8):
            return ORDER_ID
        return CURRENCY if _is(name, "currency", 8) else CATEGORY if _is(name, "category", 8) else FIELDS
    if name.size == 10:
        return ATTRIBUTES if _is(name, "attributes", 10) else FIELDS
    return CUSTOMER_ID if _is(name, "customer_id", 11) else OCCURRED_AT if _is(name, "occurred_at", 11) else FIELDS


cdef inline Bytes _after_space(Bytes p) noexcept nogil:
    while p[0] == c" " or p[0] == c"\n" or p[0] == c"\r" or p[0] == c"\t":
        p += 1
    return p


cdef inline Bytes _text(Bytes p, Span* text) noexcept nogil:
    """Where the text ends that begins with the quote at ``p``; NULL if none does, or it has an escape."""
    cdef unsigned char every = 0
    if p[0] != c'"':
        return NULL
    p += 1
    text.at = p
    while p[0] != c'"':
        if p[0] < 0x20 or p[0] == c"\\":
            return NULL
        every |= p[0]
        p += 1
    text.size = p - text.at
    text.ascii = every < 0x80
    return p + 1


cdef inline bint _digit(unsigned char c) noexcept nogil:
    return c"0" <= c <= c"9"


cdef inline Bytes _number(Bytes p, Span* text) noexcept nogil:
    """Where the number ends that begins at ``p``; NULL unless Python would write it with the same digits."""
    cdef Py_ssize_t whole, decimals = 0
    text.at = p
    text.ascii = True
    while _digit(p[0]):
        p += 1
    whole = p - text.at
    if p[0] == c".":
        p += 1
        while _digit(p[0]):
            p += 1
            decimals += 1
        if decimals == 0 or decimals > MOST_DECIMALS:
            return NULL
    if whole == 0 or (whole > 1 and text.at[0] == c"0") or whole + decimals > MOST_DIGITS:
        return NULL
    text.size = p - text.at
    return p


cdef Bytes _braces(Bytes p, Span* text) noexcept nogil:
    """Where the braces that begin at ``p`` are closed, if what they hold is JSON; NULL if they are not."""
    cdef int depth = 0
    text.at = p
    while True:
        if p[0] == c"{":
            depth += 1
        elif p[0] == c"}":
            depth -= 1
            if depth == 0:
                break
        elif p[0] == c'"':
            p += 1
            while p[0] != c'"':
                if p[0] == c"\\":
                    p += 1
                if p[0] == 0:
                    return NULL
                p += 1
        elif p[0] == 0:
            return NULL
        p += 1
    text.size = p + 1 - text.at
    return p + 1


cdef bint _fields(Bytes p, Py_ssize_t size, Span* fields) noexcept nogil:
    """Whether it is an object of an event's fields, each at most once."""
    cdef Bytes end = p + size
    cdef Span name
    cdef int field, found = 0, present = 0
    for field in range(FIELDS):
        fields[field].at = NULL
    p = _after_space(p)
    if p[0] != c"{":
        return False
    while True:
        p = _text(_after_space(p + 1), &name)
        if p == NULL:
            return False
        p = _after_space(p)
        field = _field(name)
        if p[0] != c":" or field == FIELDS or found >> field & 1:
            return False
        found |= 1 << field
        p = _after_space(p + 1)
        if field >= COUNTRY and p[0] == c"n" and p[1] == c"u" and p[2] == c"l" and p[3] == c"l":
            p += 4
        else:
            if p[0] == c'"' and field != ATTRIBUTES:
                p = _text(p, &fields[field])
            elif p[0] == c"{" and field == ATTRIBUTES:
                p = _braces(p, &fields[field])
            elif field == AMOUNT:
                p = _number(p, &fields[field])
            else:
                return False
            if p == NULL:
                return False
            present |= 1 << field
        p = _after_space(p)
        if p[0] == c"}":
            return _after_space(p + 1) == end and present & REQUIRED == REQUIRED
        if p[0] != c",":
            return False


cdef bint _amount(Span text, int decimals, int64_t* minor) noexcept nogil:
    """Whether it is an amount; in minor units of a currency of so many decimals, -1 if it cannot be said in them."""
    cdef Py_ssize_t i = 0, whole
    minor[0] = 0
    while i < text.size and _digit(text.at[i]):
        if i == WHOLE:
            return False
        minor[0] = minor[0] * 10 + text.at[i] - c"0"
        i += 1
    whole = i
    if whole == 0 or (whole < text.size and (text.at[whole] != c"." or not 1 <= text.size - whole - 1 <= DECIMALS)):
        return False
    for i in range(whole + 1, text.size):
        if not _digit(text.at[i]):
            return False
    for i in range(whole + 1, whole + 1 + decimals):
        minor[0] = minor[0] * 10 + (text.at[i] - c"0" if i < text.size else 0)
    for i in range(whole + 1 + decimals, text.size):
        if text.at[i] != c"0":
            minor[0] = -1
    if minor[0] > LARGEST:
        minor[0] = -1
    return True


cdef inline int _two(Bytes p) noexcept nogil:
    """The number that two digits are; a large one if they are none."""
    return (p[0] - c"0") * 10 + p[1] - c"0" if _digit(p[0]) and _digit(p[1]) else 10_000


cdef bint _instant(Span text, int64_t* instant) noexcept nogil:
    """Whether it is an instant of the years 1 to 9998, as microseconds since 1970; finer digits are cut off."""
    cdef Bytes p = text.at
    cdef Bytes end = p + text.size
    cdef int year, month, day, hour, minute, second, scale, east = 0
    cdef int64_t days, micros = 0
    if text.size < 20 or p[4] != c"-" or p[7] != c"-" or p[10] != c"T" or p[13] != c":" or p[16] != c":":
        return False
    year, month, day = _two(p) * 100 + _two(p + 2), _two(p + 5), _two(p + 8)
    hour, minute, second = _two(p + 11), _two(p + 14), _two(p + 17)
    if not (1 <= year <= 9998 and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60):
        return False
    if day > 30 and (month == 4 or month == 6 or month == 9 or month == 11):
        return False
    if month == 2 and day > (29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28):
        return False
    p += 19
    if p[0] == c".":
        p += 1
        scale = 100_000
        while _digit(p[0]):
            micros += (p[0] - c"0") * scale
            scale //= 10
            p += 1
        if not 21 <= p - text.at <= 29:
            return False
    if p[0] == c"Z":
        p += 1
    elif end - p == 6 and (p[0] == c"+" or p[0] == c"-") and p[3] == c":" and _two(p + 1) < 24 and _two(p + 4) < 60:
        east = _two(p + 1) * 60 + _two(p + 4)
        east = -east if p[0] == c"-" else east
        p += 6
    else:
        return False
    if p != end:
        return False
    # The days since 1970 of a civil date, in years that begin in March: howardhinnant.github.io/date_algorithms.html
    if month <= 2:
        year -= 1
        month += 12
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 1 - 719_468
    instant[0] = (((days * 24 + hour) * 60 + minute - east) * 60 + second) * 1_000_000 + micros
    return True


cdef bint _is_code(Span currency) noexcept nogil:
    """Whether it could be a currency of ISO 4217."""
    cdef Py_ssize_t i
    for i in range(currency.size):
        if not c"A" <= currency.at[i] <= c"Z":
            return False
    return currency.size == 3


cdef object _str(Span text):
    """The text; None if it is empty, too long or no UTF-8."""
    if text.size == 0 or (text.ascii and text.size > LONGEST):
        return None
    try:
        found = PyUnicode_DecodeUTF8(<const char*>text.at, text.size, NULL)
    except UnicodeDecodeError:
        return None
    return found if text.ascii or len(found) <= LONGEST else None


cdef inline bint _is_text(Span text):
    return 0 < text.size <= LONGEST if text.ascii else _str(text) is not None


cdef class _Encoder:
    """The different texts of a column, None first. Those met first are found without making an object."""

    cdef list distinct
    cdef dict places
    cdef Span[FIRST] first
    cdef int known

    def __init__(self):
        self.distinct = [None]
        self.places = {}
        self.known = 0

    cdef int64_t place(self, Span text):
        """The place of a text, whose bytes must stay where they are; -1 if it is none that ``_str`` takes."""
        cdef int i
        for i in range(self.known):
            if self.first[i].size == text.size and memcmp(self.first[i].at, text.at, text.size) == 0:
                return i + 1
        found = _str(text)
        if found is None:
            return -1
        place = self.places.setdefault(found, len(self.distinct))
        if place == len(self.distinct):
            self.distinct.append(found)
            if self.known < FIRST:
                self.first[self.known] = text
                self.known += 1
        return place


class Purchases(NamedTuple):
    """Purchases and refunds as columns. Nothing is known of the rows at the positions ``odd``.

    ``amount`` is in minor units of the base currency; amounts at the positions of ``priced``, which says them and their
    currencies, are still to be converted. Of country, channel and category, ``texts`` has the different ones, and the
    place of each row's among them; some may be of odd rows only. ``attributes`` has positions, and the JSON of the object
    there, which is still to be validated.
    """

    kind: np.ndarray
    occurred_at: np.ndarray
    amount: np.ndarray
    event_id: list[str]
    customer_id: list[str]
    texts: dict[str, tuple[list[str | None], np.ndarray]]
    attributes: list[tuple[int, bytes]]
    priced: list[tuple[int, str, str]]
    odd: list[int]


def purchases(list values not None, str base not None):
    """Read the plain ones among the values, each of which should be bytes. ``base`` is a currency's code."""
    cdef Py_ssize_t i, n = len(values)
    cdef int field, decimals = exponent(base)
    cdef bytes code = base.encode()
    cdef Span[FIELDS] fields
    cdef bint good
    cdef int8_t[::1] kind = np.zeros(n, dtype=np.int8)
    cdef int64_t[::1] occurred_at = np.zeros(n, dtype=np.int64)
    cdef int64_t[::1] amount = np.zeros(n, dtype=np.int64)
    cdef int64_t[:, ::1] places = np.zeros((ATTRIBUTES - COUNTRY, n), dtype=np.int64)
    cdef list event_id = [""] * n, customer_id = [""] * n, attributes = [], priced = [], odd = []
    cdef list encoders = [_Encoder(), _Encoder(), _Encoder()]
    for i in range(n):
        value = values[i]
        good = (
            PyBytes_CheckExact(value)
            and _fields(<Bytes>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), fields)
            and (_is(fields[KIND], "purchase", 8) or _is(fields[KIND], "refund", 6))
            and _is_text(fields[ORDER_ID])
            and _instant(fields[OCCURRED_AT], &occurred_at[i])
            and _amount(fields[AMOUNT], decimals, &amount[i])
            and _is_code(fields[CURRENCY])
        )
        for field in range(COUNTRY, ATTRIBUTES):
            if good and fields[field].at != NULL:
                places[field - COUNTRY, i] = (<_Encoder>encoders[field - COUNTRY]).place(fields[field])
                good = places[field - COUNTRY, i] > 0
        if good:
            event, customer = _str(fields[EVENT_ID]), _str(fields[CUSTOMER_ID])
            good = event is not None and customer is not None
        if not good:
            odd.append(i)
            continue
        event_id[i], customer_id[i] = event, customer
        kind[i] = PURCHASE if fields[KIND].size == 8 else REFUND
        if amount[i] < 0 or memcmp(fields[CURRENCY].at, PyBytes_AS_STRING(code), 3) != 0:
            priced.append((i, _str(fields[AMOUNT]), _str(fields[CURRENCY])))
        if fields[ATTRIBUTES].at != NULL:
            attributes.append((i, (<const char*>fields[ATTRIBUTES].at)[: fields[ATTRIBUTES].size]))
    texts = {
        name: ((<_Encoder>encoder).distinct, place)
        for name, encoder, place in zip(("country", "channel", "category"), encoders, np.asarray(places), strict=True)
    }
    return Purchases(
        np.asarray(kind), np.asarray(occurred_at), np.asarray(amount), event_id, customer_id, texts, attributes,
        priced, odd,
    )
