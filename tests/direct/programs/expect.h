/* EXPECT(condition): end the program by SIGABRT, with the line and errno on stderr, unless the condition holds. */
#ifndef EXPECT_H
#define EXPECT_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPECT(what)                                                                                                   \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #what, strerror(errno));                                   \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
