"""The program of a sender process: sends streams, and receives RTP and RTCP of their remotes.

`__main__` is its loop. Sending: `tick_schedule` decides when each stream is sent, `stream_table`
has their state, `packet_batch` holds the headers of a tick's packets as arrays, `sendmmsg` passes
them to the kernel, and `playlist` maps the recordings. Receiving: `stream_receiver` runs
`rtp_receiver` (addresses, digits), `rtcp` (reports) and an inactivity timer. `priority` sets the
process's priority and core.
"""
