/* Calls that change user, groups, capabilities or namespaces: a process may lose rights by them. */
#include "calls.h"

#include <grp.h>
#include <sys/fsuid.h>

#include "rights.h"

/* Call the C library's functions, which change all threads: to the kernel each thread has rights of its own. */
#define CHANGES(type, name, parameters, arguments)                                                                     \
    PUBLIC type name parameters {                                                                                      \
        static void *_Atomic found;                                                                                    \
        type (*real) parameters = (type(*) parameters)pl_next(#name, &found);                                          \
        type result = real arguments;                                                                                  \
                                                                                                                       \
        pl_check_rights();                                                                                             \
        return result;                                                                                                 \
    }

CHANGES(int, setuid, (uid_t user), (user))
CHANGES(int, seteuid, (uid_t user), (user))
CHANGES(int, setreuid, (uid_t real_user, uid_t user), (real_user, user))
CHANGES(int, setresuid, (uid_t real_user, uid_t user, uid_t saved), (real_user, user, saved))
CHANGES(int, setfsuid, (uid_t user), (user))
CHANGES(int, setgid, (gid_t group), (group))
CHANGES(int, setegid, (gid_t group), (group))
CHANGES(int, setregid, (gid_t real_group, gid_t group), (real_group, group))
CHANGES(int, setresgid, (gid_t real_group, gid_t group, gid_t saved), (real_group, group, saved))
CHANGES(int, setfsgid, (gid_t group), (group))
CHANGES(int, setgroups, (size_t count, const gid_t *groups), (count, groups))
CHANGES(int, initgroups, (const char *user, gid_t group), (user, group))
CHANGES(int, capset, (void *header, const void *data), (header, data))
CHANGES(int, setns, (int fd, int kind), (fd, kind))
CHANGES(int, unshare, (int flags), (flags))
