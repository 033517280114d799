"""The HTTP API: validates requests, calls the services, and answers in an envelope."""
