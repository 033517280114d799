"""Text to speech: engines, kept renderings, spoken digits, and the worker process."""
