"""Notifications for the operator: trunk down, dialer paused, balance low, disk low.

`conditions` finds what is wrong and when that began or ended; `sender` posts each change to a URL
or runs a command with it. Nothing here delays a call: a notification that can't be sent is logged
and given up after some tries.
"""
