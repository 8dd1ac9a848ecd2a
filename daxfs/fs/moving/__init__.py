"""Blocks, inodes and the end of the file system move while programs use them: relocation, growth and shrinking.

What is moved is decided by callers (`daxfs.fs.administration`, a session); a module here moves it in steps, each of
which a power cut may follow (docs/CRASH.md).
"""
