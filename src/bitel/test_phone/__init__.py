"""A SIP callee for trying things out: answers, is busy, does not answer, records the audio."""
