"""The session over libfuse and pyfuse3: a translation of its requests, its loop, and how it waits."""
