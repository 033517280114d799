"""The media side: recordings sent as RTP to many calls at once, and RTP received and recorded.

`streamer.Streamer` sends: it owns the local ports and one or more sender processes, in which a
tick is one vectorised header update and one `sendmmsg` per socket for all the streams whose turn
it is; in its spare time the process listens to callees (`callees.Callees`), where that is wanted.
`receiver.Receiver` hears one call. Nothing here knows of SIP or of calls.
"""
