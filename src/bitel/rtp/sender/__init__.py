"""The sender process: sends the streams and receives what their remote parties send.

`__main__` is its loop. Sending: `tick_schedule` says when and which streams, `stream_table` knows
their state, `packet_batch` holds the headers of those that are sent together as arrays, `sendmmsg`
passes them to the kernel, and `playlist` maps the recordings. Receiving: `stream_receiver` runs
`rtp_receiver` (addresses, digits), `rtcp` (reports) and an inactivity timer. `priority`
asks the kernel for a core.
"""
