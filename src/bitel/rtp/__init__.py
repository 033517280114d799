"""RTP media: recordings sent to many calls at once, and what the remote parties send back.

Theory of operation. `streamer.Streamer` runs on the service's event loop. It lends local ports
(`port_pool`) and passes each stream, as a `stream_spec.StreamSpec`, to one of its sender processes
(`sender_process`: start, restart, commands over a socket in the form of `ipc`). Recordings are
passed once, as memory files (`shared_clip`). The program of a sender process is the package
`sender`. Its loop ticks every 2 ms: a tick updates the headers of all streams that are due in a few
NumPy operations and sends them with one `sendmmsg` per socket. Between ticks the process reads RTP
and RTCP, of which a BPF program (`bpf`) lets through a sample; ticks always come first. When a
stream is over, its `StreamReport` goes back to the caller of `Streamer.play`.

This package knows neither SIP nor calls. It imports nothing here: a sender process, which runs this
file too, starts without asyncio.
"""
