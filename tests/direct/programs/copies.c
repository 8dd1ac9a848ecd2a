/* Stores of all lengths and alignments, with and without write-back of lines, have the same result as memcpy. */
#include "../../../daxfs/direct/preload/copy.c"

#include <stdio.h>
#include <stdlib.h>

#define ROOM (1 << 17)

int main(void) {
    static char from[ROOM], to[ROOM], expected[ROOM];

    for (int i = 0; i < 6000; i++) {
        size_t length = (size_t)rand() % (i % 20 ? 3000 : 70000), begin = (size_t)rand() % 5000;
        size_t source = (size_t)rand() % 5000;

        for (size_t j = 0; j < length; j += 97)
            from[source + j] = (char)rand();
        memcpy(expected + begin, from + source, length);
        pl_store(to + begin, from + source, length, i % 2);
        if (memcmp(to, expected, ROOM)) {
            printf("lines %d, %zu bytes at %zu\n", i % 2, length, begin);
            return 1;
        }
    }
    printf("good\n");
    return 0;
}
