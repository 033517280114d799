"""What an operator sees of the process: logs, the lag of the event loop, garbage collection."""
