"""Notifications for the operator: trunk down, dialer paused, balance low, disk low.

`conditions` detects conditions and when they begin and end; `sender` posts each change to a URL or
runs a command with it. A notification that can't be sent is logged and given up after some tries.
"""
