/* Waking: who is called when there is something to do.
 *
 * An idle worker has a bit in pool->idle, and who clears the bit wakes it; `coming` says
 * that somebody is on his way for jobs, so that a thousand submits wake one worker. */
#include "rt_pool.h"

bool rt_pool_wake_one(struct rt_pool *pool)
{
    unsigned word, words = (pool->worker_count + 63) / 64;

    for (word = 0; word < words; word++) {
        uint64_t idle = atomic_load(&pool->idle[word]);

        while (idle != 0) {
            uint64_t bit = idle & -idle;

            /* Who clears the bit is the one who wakes it. */
            idle = atomic_fetch_and(&pool->idle[word], ~bit);
            if (idle & bit) {
                unsigned index = word * 64 + (unsigned)__builtin_ctzll(bit);

                rt_event_signal(&pool->workers[index].event);
                rt_count(&pool->wakes, 1);
                return true;
            }
            idle &= ~bit;
        }
    }
    return false;
}

void rt_pool_wake_all(struct rt_pool *pool)
{
    unsigned i;

    for (i = 0; i <= pool->worker_count; i++)
        rt_event_signal(&pool->workers[i].event);
    rt_poller_bell(&pool->poller);
}

void rt_pool_call_leader(struct rt_pool *pool)
{
    if (!rt_pool_wake_one(pool) && atomic_load(&pool->reserve) != 0)
        rt_event_signal(&pool->workers[pool->worker_count].event);
}

bool rt_pool_has_jobs(const struct rt_pool *pool)
{
    return !rt_stack_empty(&pool->submitted) || !rt_ring_empty(pool->ring);
}

bool rt_pool_somebody_idle(const struct rt_pool *pool)
{
    unsigned word, words = (pool->worker_count + 63) / 64;

    for (word = 0; word < words; word++) {
        if (atomic_load(&pool->idle[word]) != 0)
            return true;
    }
    return false;
}

void rt_pool_call_worker(struct rt_pool *pool)
{
    do {
        /* Partner: the exchange in rt_pool_take(), and the idle bit in rt_worker.c. */
        rt_fence();
        if (atomic_load(&pool->coming) != 0 || atomic_exchange(&pool->coming, 1) != 0)
            return;
        if (rt_pool_wake_one(pool))
            return;
        atomic_store(&pool->coming, 0);
        rt_poller_bell(&pool->poller);
        /* Who submitted meanwhile left the call to us, and a worker may have
         * gone to sleep before that. */
        rt_fence();
    } while (rt_pool_has_jobs(pool) && rt_pool_somebody_idle(pool));
}
