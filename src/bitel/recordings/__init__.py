"""Recordings: uploaded, decoded once to both G.711 laws, stored, and read back.

`files.receive` writes an upload to disk. `decode` runs `decode_worker` in a process of its own
(`worker_process`), which limits its resources (`limits`), enters the `sandbox` and decodes the file
(`transcoding`, `truncation`). `storage` keeps the result.

Nothing is imported here: the workers start faster the less this package imports.
"""
