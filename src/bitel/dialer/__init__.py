"""Places calls over SIP trunks.

`SipTrunkDialer.dial` makes one attempt: it lays out what is played (`playlist`), asks the
`TrunkMonitor` for routes to the number, and sends an INVITE by one route after the other
(`failover`) until one is answered or a response decides the attempt; each INVITE is a `CallLeg`.
The answer is made durable before the ACK leaves; then a `MediaSession` plays the clips by RTP, and
a BYE ends the call. `CallAttempt` collects the facts, and makes the result of them.

The trunk monitor knows which trunks take calls: their addresses from DNS (`resolver`), pings and
circuit breakers (`trunk_health`), and registrations. `sip_trace` keeps the SIP messages.
"""
