/* A worker: one thread of a pool.
 *
 * Its life is a loop of three: take a job and run it; else, if nobody leads,
 * lead (take turns in the poller); else sleep on its own event until somebody
 * needs it.  A leader that is about to do something long passes the lead on
 * first, so that connections and deadlines are always waited for while any
 * worker is free.
 *
 * Workers block all signals before they start.
 *
 * A job may need a lock of the pool's owner, one that is dear to take: Python's
 * GIL.  Such a job is `hosted`.  The first one takes the lock itself and sets
 * `held`; the next ones find it held.  Before a worker does anything else, be it
 * another kind of job, a look at the connections or sleep, it lets go of it
 * through the pool's host.  So the lock is taken once for all calls that wait, and
 * never held where a worker waits.
 *
 * What hosted jobs finished goes home when the worker has let go, so that who is woken
 * finds the lock free; or before the next job begins, which may take long.
 *
 * A worker that has run hosted jobs and finds no more looks for the next one for a moment
 * before it sleeps (rt_pool_set_busy_poll()), one worker at a time, if the last one `expects`
 * more: who awaits one call after another makes the next one as soon as he has a result. */
#ifndef RT_WORKER_H
#define RT_WORKER_H

#include <pthread.h>

#include "rt_habit.h"
#include "rt_job.h"
#include "rt_poller.h"
#include "rt_queue.h"

#define RT_EVENTS 64 /* events fetched by one epoll_wait */

struct rt_pool;
struct rt_worker;

/* The owner of what hosted jobs hold. */
struct rt_host {
    /* Let go of it: `held` is false afterwards.  Thread: the worker. */
    void (*leave)(struct rt_worker *worker);
    /* The worker has sent home what it had, holds nothing and may wait now. */
    void (*idle)(struct rt_worker *worker);
    /* The thread ends; nothing is held.  Called for workers with a guest only. */
    void (*ended)(struct rt_worker *worker);
};

/* Counted by the worker alone, read by anybody. */
struct rt_worker_stats {
    _Atomic uint64_t jobs;     /* pool jobs run */
    _Atomic uint64_t commands; /* replies matched (counted by the redis layer) */
    _Atomic uint64_t batches;  /* reads that brought replies */
    _Atomic uint64_t wakeups;  /* times it was woken from its event */
    _Atomic uint64_t polls, poll_hits; /* looks for a job before a sleep, and jobs so found */
};

struct rt_worker {
    _Alignas(RT_CACHELINE) struct rt_event event;
    struct rt_pool *pool;
    unsigned index;
    bool leading;
    bool reserve; /* it runs no jobs (rt_pool.h) */
    bool held;   /* the host's lock is held by this thread */
    bool expects; /* who is told of what it has finished may have more for it at once */
    bool watched; /* its job was found by looking for it */
    struct rt_habit watching;
    struct rt_joblist finished; /* by hosted jobs, all of one mailbox; not posted yet */
    _Atomic uint64_t posts;     /* how often those were posted */
    void *guest; /* the host's own, of this thread; NULL at first */
    struct rt_worker_stats stats;

    struct rt_stack inbox;       /* turns of the lanes that are pinned to it */
    struct rt_job *turns;        /* taken from there; the worker's own */
    bool shared_next;            /* it ran one of those: the queue has its turn */
    _Atomic uint32_t lanes;      /* how many are pinned to it */

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

/* Finish a hosted job, and send it home soon.  Thread: the worker that holds it. */
void rt_worker_finish(struct rt_worker *worker, struct rt_job *job, int err);

/* Send home what was finished.  Thread: the worker itself. */
void rt_worker_post(struct rt_worker *worker);

/* The worker whose thread this is, or NULL. */
struct rt_worker *rt_worker_current(void);

/* Let go of what hosted jobs left held, and send home what they finished.  Thread: the worker itself. */
void rt_worker_leave(struct rt_worker *worker);

#endif
