"""A broker and a Redis in one process, on loopback, for the demo, for tests and for a first look."""
