"""Notifications for the operator: trunk down, dialer paused, balance low, disk low.

`monitor` compares the conditions of now with those of before and says which began and ended;
`conditions` finds them in the parts of the service; `sending` posts each change to a URL or runs a
command with it. Nothing here delays a call: a notification that can't be sent is logged and given
up after some tries.
"""
