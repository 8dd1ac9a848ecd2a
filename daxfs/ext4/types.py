"""Floor 3: the kinds of number that the format mixes freely: inodes, logical and physical blocks, byte offsets.

Only names for the type checker; at run time they are plain ints. For places where a mix-up would be silent;
anybody may import them.
"""

from __future__ import annotations

from typing import NewType

Ino = NewType("Ino", int)
Lblk = NewType("Lblk", int)
Pblk = NewType("Pblk", int)
ByteOffset = NewType("ByteOffset", int)
