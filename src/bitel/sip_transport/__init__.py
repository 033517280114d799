"""The I/O of a SIP user agent on asyncio.

`SipTransport` sends the messages that the agent queues, passes it received messages, runs its timer
and dispatches its events. It has one UDP socket (`udp`), and TCP and TLS connections in one
`ConnectionPool`, both our own and those that a `Listener` accepts. A `Connection` frames messages,
sends keep-alives, and knows which INVITEs the remote kernel has acknowledged.
"""
