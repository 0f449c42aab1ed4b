"""Real servers for the tests that need more than fakes."""
