"""A SIP user agent, which does no I/O, on asyncio.

`SipTransport` sends what the agent queues, gives it what arrives, keeps its timer and hands out its
events. It reads one UDP socket (`udp`), and TCP and TLS connections: those that others open
(`acceptor`) and ours, all of them in one `ConnectionPool`. A `Connection` frames messages, pings,
and knows which INVITEs the remote kernel has acknowledged.
"""
