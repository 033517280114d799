"""The HTTP API: checks what a client asks for, hands it to the store, answers in an envelope."""
