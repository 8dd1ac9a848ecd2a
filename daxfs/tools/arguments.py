"""Arguments that several commands have: their names in the usage, and the help."""

from __future__ import annotations

from typing import Annotated

import typer

PoolArgument = Annotated[str, typer.Argument(metavar="POOL", help="A file, block device or /dev/dax device.")]
MountpointArgument = Annotated[str, typer.Argument(metavar="MOUNTPOINT", help="A directory.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the snapshot.")]
PlaceArgument = Annotated[
    str, typer.Argument(metavar="MOUNTPOINT|POOL", help="Where daxfs is mounted, or a pool that is not in use.")
]
