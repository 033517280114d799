"""Text to speech.

`library` is the cache that the service asks. `engines` chooses the engine and runs `worker`, a
process of its own, on texts that `spoken_text` has cleaned. `digits` makes the clips of codes.
"""
