"""Grants: the memory of files that clients load from and store to by themselves, and when its blocks become free.

This is epoch-based reclamation, known from lock-free data structures, with blocks in place of objects:

- an answer that says where bytes of a file lie is a *grant*; the client is then a *holder* of grants of the file;
- each change that makes an answer wrong ends an *epoch* of the file; a holder *renews* when it asks again;
- blocks that a file gives up are *deferred frees*: a *quarantine inode* holds them until every holder of that epoch has
  renewed or is gone;
- the *status page* has an *entry* for each granted file, where clients see the running epoch;
- *stale clients* map the pool since an earlier mount, and may touch whatever was in it then.

Each module imports only modules named before it: `status_page` (entries and token), `inode_grants` (the grants of one
file), `epochs` (deferred frees), `recall` (taking grants back), `table` (all grants of a volume; it implements the
notifiers), `waiting` (the users for whom blocks wait), `answers` (the pieces of an answer), `requests` (granting and
renewing), `write_notifications` (stores that clients report). docs/DIRECT.md describes the whole. The rest of the file
system knows none of these modules: it calls `daxfs.fs.notifiers`.
"""
