"""Webhooks: the end of each call is posted to its project's URL.

`endings.end_calls` writes an event to the outbox (`store/webhooks.py`). The `deliverer` claims due
events, builds the body (`payload`), signs it (`signing`), posts it (`http_client`, to addresses
that `domain.webhooks` allows) and writes the result; `retry_policy` says when a failure is retried.
"""
