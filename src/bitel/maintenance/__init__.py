"""Upkeep of a running service: retention, housekeeping, a watch on disk and database, backups."""
