"""From rows that are due to attempts that are over: dispatcher, pacing, recovery."""
