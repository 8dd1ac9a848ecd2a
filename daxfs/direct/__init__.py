"""Floor of programs: memory of a file of a mounted daxfs, without asking for each read and write."""
