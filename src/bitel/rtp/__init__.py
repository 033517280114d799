"""The media side: recordings sent as RTP to many calls at once, and RTP received and recorded.

`streamer.Streamer` sends: it owns the local ports and one or more sender processes, in which a
tick of 20 ms is one vectorised header update and one `sendmmsg` per socket. `receiver.Receiver`
hears one call. Nothing here knows of SIP or of calls.
"""
