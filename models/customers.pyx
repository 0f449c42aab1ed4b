# cython: language_level=3, wraparound=False, boundscheck=False, cdivision=True
"""CustomerIndex: which row each customer has, and whose each row is, without an object for any of them.

A hash table with linear probing: a slot has a row and 32 bits of its customer's hash, which say where the slot would
be best, so that others can move up when one is removed. The ids lie one behind the other as UTF-8. All that takes some
20 bytes a customer and the id, a fifth of what a dictionary and its strings take.
"""

import numpy as np

from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    #: Bits for the length of an id.
    LENGTH = 16
    #: Of four slots three are taken at most.
    TAKEN = 3
    SLOTS = 4

cdef uint64_t LENGTHS = (1 << LENGTH) - 1
cdef uint64_t LONGEST = LENGTHS - 1
cdef uint64_t MOST_ROWS = 0xFFFFFFFE


cdef class CustomerIndex:
    """Which row each customer has, and whose each row is."""

    #: Hash in the upper half, row + 1 in the lower; 0 is an empty slot.
    cdef uint64_t* _slots
    cdef uint64_t _capacity
    cdef Py_ssize_t _size
    #: By row: where its customer's id lies, and the id's length + 1; 0 is nobody's row.
    cdef uint64_t* _ids
    cdef uint64_t _rows
    cdef char* _text
    cdef uint64_t _end
    cdef uint64_t _room
    #: Bytes of ids that have been removed.
    cdef uint64_t _removed

    def __dealloc__(self):
        PyMem_RawFree(self._slots)
        PyMem_RawFree(self._ids)
        PyMem_RawFree(self._text)

    def __len__(self):
        return self._size

    def __contains__(self, str customer):
        return self.get(customer) is not None

    def __getitem__(self, str customer):
        row = self.get(customer)
        if row is None:
            raise KeyError(customer)
        return row

    def get(self, str customer):
        """The customer's row, or None."""
        cdef int64_t row = self._row(customer)
        return None if row < 0 else row

    def find(self, list customers):
        """The row of each customer, -1 for one who has none."""
        cdef Py_ssize_t i, size = len(customers)
        rows = np.empty(size, dtype=np.int64)
        cdef int64_t[::1] found = rows
        for i in range(size):
            found[i] = self._row(customers[i])
        return rows

    def names(self, const int64_t[::1] rows):
        """Whose each row is; "" for nobody's."""
        cdef Py_ssize_t i
        return [self._name(rows[i]) for i in range(rows.shape[0])]

    def rows(self):
        """The rows that are somebody's, ascending."""
        cdef uint64_t row
        cdef Py_ssize_t count = 0
        rows = np.empty(self._size, dtype=np.int64)
        cdef int64_t[::1] found = rows
        for row in range(self._rows):
            if self._ids[row]:
                found[count] = row
                count += 1
        return rows

    def reserve(self, Py_ssize_t customers):
        """Make room for so many customers at once. Raises ValueError if nobody can have so many."""
        if not 0 <= customers <= <Py_ssize_t>MOST_ROWS:
            raise ValueError("a table has 4,294,967,295 rows at most")
        if <uint64_t>customers * SLOTS > self._capacity * TAKEN:
            self._resize(<uint64_t>customers * SLOTS // TAKEN + 1)
        if <uint64_t>customers > self._rows:
            self._lengthen(customers)

    def add(self, list customers, const int64_t[::1] rows):
        """Give rows that are nobody's to customers who have none.

        Raises ValueError for a row or customer that has been given, and for an id too long; those before it stay.
        """
        cdef Py_ssize_t i
        if len(customers) != rows.shape[0]:
            raise ValueError("as many rows as customers are needed")
        for i in range(rows.shape[0]):
            self._add(customers[i], rows[i])

    def remove(self, const int64_t[::1] rows):
        """Take rows from their customers."""
        cdef Py_ssize_t i
        for i in range(rows.shape[0]):
            self._remove(rows[i])

    cdef int64_t _row(self, str customer) except -2:
        cdef Py_ssize_t size
        cdef const char* text = PyUnicode_AsUTF8AndSize(customer, &size)
        if not self._size:
            return -1
        cdef uint64_t slot = self._slots[self._slot(<uint32_t>hash(customer), text, size)]
        return <int64_t>(slot & 0xFFFFFFFF) - 1

    cdef str _name(self, uint64_t row):
        if row >= self._rows or not self._ids[row]:
            return ""
        cdef uint64_t ident = self._ids[row]
        return PyUnicode_DecodeUTF8(self._text + (ident >> LENGTH), (ident & LENGTHS) - 1, NULL)

    cdef inline uint64_t _best(self, uint64_t slot) noexcept:
        """Where a slot would be best: the hash's share of the capacity."""
        return (slot >> 32) * self._capacity >> 32

    cdef inline uint64_t _after(self, uint64_t place) noexcept:
        return place + 1 if place + 1 < self._capacity else 0

    cdef uint64_t _slot(self, uint32_t hashed, const char* text, uint64_t size) noexcept:
        """Where the customer's slot is, or the empty one where it would be."""
        cdef uint64_t place = self._best(<uint64_t>hashed << 32), slot, ident
        while True:
            slot = self._slots[place]
            if not slot:
                return place
            if slot >> 32 == hashed:
                ident = self._ids[(slot & 0xFFFFFFFF) - 1]
                if (ident & LENGTHS) == size + 1 and memcmp(self._text + (ident >> LENGTH), text, size) == 0:
                    return place
            place = self._after(place)

    cdef int _add(self, str customer, int64_t row) except -1:
        cdef Py_ssize_t size
        cdef const char* text = PyUnicode_AsUTF8AndSize(customer, &size)
        cdef uint32_t hashed = <uint32_t>hash(customer)
        if <uint64_t>size > LONGEST or row < 0 or <uint64_t>row > MOST_ROWS:
            raise ValueError("an id may have 65,534 bytes, a table 4,294,967,295 rows")
        if <uint64_t>(self._size + 1) * SLOTS > self._capacity * TAKEN:
            self._resize(self._capacity + self._capacity // 4 + 1024)
        if <uint64_t>row >= self._rows:
            self._lengthen(row + 1 + row // 4 + 1024)
        if self._end + size >= self._room:
            self._make_room(size)
        cdef uint64_t place = self._slot(hashed, text, size)
        if self._slots[place] or self._ids[row]:
            raise ValueError("the customer has a row already, or the row a customer")
        memcpy(self._text + self._end, text, size)
        self._ids[row] = self._end << LENGTH | <uint64_t>(size + 1)
        self._end += size
        self._slots[place] = <uint64_t>hashed << 32 | <uint64_t>(row + 1)
        self._size += 1
        return 0

    cdef int _remove(self, uint64_t row) except -1:
        cdef str customer = self._name(row)
        if row >= self._rows or not self._ids[row]:
            raise ValueError("the row is nobody's")
        cdef Py_ssize_t size
        cdef const char* text = PyUnicode_AsUTF8AndSize(customer, &size)
        cdef uint64_t gap = self._slot(<uint32_t>hash(customer), text, size), place = gap, best
        while True:
            place = self._after(place)
            if not self._slots[place]:
                break
            best = self._best(self._slots[place])
            # Into the gap may move what would be best there or before it; the slots are a ring.
            if (best <= gap or best > place) if gap < place else (place < best <= gap):
                self._slots[gap] = self._slots[place]
                gap = place
        self._slots[gap] = 0
        self._ids[row] = 0
        self._removed += size
        self._size -= 1
        return 0

    cdef int _resize(self, uint64_t capacity) except -1:
        cdef uint64_t* before = self._slots
        cdef uint64_t known = self._capacity, i, place
        cdef uint64_t* slots = <uint64_t*>_memory(NULL, capacity * sizeof(uint64_t))
        memset(slots, 0, capacity * sizeof(uint64_t))
        self._slots, self._capacity = slots, capacity
        for i in range(known):
            if before[i]:
                place = self._best(before[i])
                while slots[place]:
                    place = self._after(place)
                slots[place] = before[i]
        PyMem_RawFree(before)
        return 0

    cdef int _lengthen(self, uint64_t rows) except -1:
        self._ids = <uint64_t*>_memory(self._ids, rows * sizeof(uint64_t))
        memset(self._ids + self._rows, 0, (rows - self._rows) * sizeof(uint64_t))
        self._rows = rows
        return 0

    cdef int _make_room(self, uint64_t size) except -1:
        """Make room for another id: if half of all is of removed ones without them, else with more memory."""
        cdef uint64_t room = self._end - self._removed + size, row, end = 0, length
        room += room // 4 + 4096
        cdef char* text
        if 2 * self._removed < self._end:
            self._text = <char*>_memory(self._text, room + self._removed)
            self._room = room + self._removed
            return 0
        text = <char*>_memory(NULL, room)
        for row in range(self._rows):
            if self._ids[row]:
                length = (self._ids[row] & LENGTHS) - 1
                memcpy(text + end, self._text + (self._ids[row] >> LENGTH), length)
                self._ids[row] = end << LENGTH | (length + 1)
                end += length
        PyMem_RawFree(self._text)
        self._text, self._end, self._room, self._removed = text, end, room, 0
        return 0


cdef void* _memory(void* block, size_t size) except NULL:
    cdef void* found = PyMem_RawRealloc(block, size)
    if found == NULL:
        raise MemoryError
    return found
