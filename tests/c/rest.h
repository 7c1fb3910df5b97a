/* A pool at rest: each of its workers is asleep, the one that leads in epoll. */
#ifndef REST_H
#define REST_H

#include "rt_pool.h"
#include "threads.h"

static inline bool pool_is_at_rest(const struct rt_pool *pool)
{
    unsigned asleep = atomic_load(&pool->poller.sleep) == 1 && atomic_load(&pool->lead) != 0;
    unsigned word;

    for (word = 0; word < RT_IDLE_WORDS; word++)
        asleep += (unsigned)__builtin_popcountll(atomic_load(&pool->idle[word]));
    return asleep == atomic_load(&pool->started);
}

/* Wait until a pool is at rest, and once more after what its clocks have still to do. */
static inline void rest(const struct rt_pool *pool)
{
    MT_EVENTUALLY(pool_is_at_rest(pool));
    mt_sleep_ms(10);
    MT_EVENTUALLY(pool_is_at_rest(pool));
}

#endif
