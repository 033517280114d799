"""The command line `bitel`, one module per group of commands.

Commands that manage the service use its database (`common.open_database`), whether or not the
service is running. Those that place and show calls use the HTTP API (`common.open_client`). Modules
of the service are imported when a command runs, so that help is fast and the client works without
them.
"""
