"""Text to speech: engines, cache of renderings, spoken digits, and the worker process."""
