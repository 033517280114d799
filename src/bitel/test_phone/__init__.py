"""A SIP user agent server for tests and trials: answers or rejects calls, records audio."""
