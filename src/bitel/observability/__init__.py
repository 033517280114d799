"""Logging, event loop lag and garbage collection."""
