"""Places calls over SIP trunks.

`SipTrunkDialer.dial` makes one attempt. It reads the clips to play (`playlist`), gets the routes to
the number from the `TrunkMonitor`, and sends an INVITE (`CallLeg`) by one route after the other
(`failover`) until an answer or another response decides the attempt. The answer is persisted before
the ACK is sent; then a `MediaSession` plays the clips over RTP, and BYE ends the call.
`CallAttempt` records times and builds the result.

The trunk monitor knows which trunks take calls: their addresses from DNS (`resolver`), pings and
circuit breakers (`trunk_health`), and registrations. `sip_trace` stores the SIP messages.
"""
