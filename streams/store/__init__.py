"""Where shards are kept: Redis for workers, memory for replays and tests; one contract suite for both."""
