"""The tasks: one file each, from the columns a task reads to the columns it writes. Nothing here knows of Ray."""
