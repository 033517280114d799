"""Recordings: taken in, decoded once to both G.711 laws, stored, and read back.

Nothing is imported here: the decode worker starts faster the less this package pulls in.
"""
