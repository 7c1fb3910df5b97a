/* A worker: one thread of a pool.
 *
 * Its life is a loop of three: take a job and run it; else, if nobody leads,
 * lead (take turns in the poller); else sleep on its own event until somebody
 * needs it.  A leader that is about to do something long passes the lead on
 * first, so that connections and deadlines are always waited for while any
 * worker is free.
 *
 * Workers block all signals before they start and never touch Python. */
#ifndef RT_WORKER_H
#define RT_WORKER_H

#include <pthread.h>

#include "rt_poller.h"
#include "rt_queue.h"

#define RT_EVENTS 64 /* events fetched by one epoll_wait */

struct rt_pool;

/* Counted by the worker alone, read by anybody. */
struct rt_worker_stats {
    _Atomic uint64_t jobs;     /* pool jobs run */
    _Atomic uint64_t commands; /* replies matched (counted by the redis layer) */
    _Atomic uint64_t batches;  /* reads that brought replies */
    _Atomic uint64_t wakeups;  /* times it was woken from its event */
};

struct rt_worker {
    _Alignas(RT_CACHELINE) struct rt_event event;
    struct rt_pool *pool;
    unsigned index;
    bool leading;
    struct rt_worker_stats stats;

    /* What a turn of the poller has fetched and not handled yet. */
    struct rt_node *todo;
    struct epoll_event events[RT_EVENTS];
    int next_event, event_count;
};

/* Start the thread of `worker`.  0 or RT_ESYS. */
int rt_worker_start(struct rt_worker *worker);

/* Let somebody else lead, since this worker will be busy.  No-op when it does
 * not lead.  Thread: the worker itself. */
void rt_worker_pass_lead(struct rt_worker *worker);

#endif
