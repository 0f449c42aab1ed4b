"""The pure core: tables, batches and instants in, segment changes out. No I/O, clock, environment or logging."""
