"""Pairs of query and passage without a generator: functions over texts, their random numbers counters."""
