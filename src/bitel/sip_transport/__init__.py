"""Adapters between a user agent without I/O and asyncio."""
