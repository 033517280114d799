"""Recordings: decoded once to both G.711 laws, stored and read.

Nothing is imported here, so that the decode worker starts fast.
"""
