"""Memory of files that clients load from and store to by themselves: what is granted, and when blocks come free.

Epoch-based reclamation, as databases without locks know it, with blocks in place of objects:

- an answer that says where bytes lie is a *grant*; the client is a *holder* of the file's grants from then on;
- each change that makes an answer wrong ends an *epoch* of the file; a holder *renews* when it asks again;
- blocks that a file gives up are *deferred frees*: a *quarantine inode* holds them until every holder of that epoch has
  renewed or is gone;
- the *status page* has an *entry* for each granted file, where clients see the running epoch;
- *stale clients* map the pool from before this mount, and may touch whatever was in it then.

The modules, each of which imports only those before it: `status_page` (the entries and the token), `inode_grants` (one
file's grants), `epochs` (what is freed when), `recall` (taking grants back), `table` (all grants of a volume; it hears
what happens to inodes), `waiting` (for whom blocks wait), `answers` (the pieces of an answer), `requests` (asking and
giving back), `stored` (what clients say that they have stored). docs/DIRECT.md has the whole of it. The rest of
the file system knows none of this: it calls `daxfs.fs.notifiers`.
"""
