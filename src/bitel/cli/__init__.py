"""The commands of `bitel`, a module for each subject.

Commands that manage the service work on its database (`common.open_database`), with the service
running or not. Those that place and show calls use the HTTP API (`common.open_client`). Each
imports the parts that it needs when it runs, so that help starts fast and the client works without
the modules of the service.
"""
