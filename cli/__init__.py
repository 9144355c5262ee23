"""The command line: each command parses its options, calls the Python API, and prints."""
