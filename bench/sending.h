/* How the C programs here send what they have appended. */
#ifndef OFFLOOP_BENCH_SENDING_H
#define OFFLOOP_BENCH_SENDING_H

#include <hiredis/hiredis.h>

/* Write all that a context holds.  Not 0: the connection is broken. */
static inline int write_all(redisContext *context)
{
    int done = 0;

    while (!done)
        if (redisBufferWrite(context, &done) != REDIS_OK)
            return 1;
    return 0;
}

#endif
