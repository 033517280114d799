"""Webhooks: telling a project's own server, over HTTP, what became of its calls."""
