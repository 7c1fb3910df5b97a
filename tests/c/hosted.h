/* Hosted calls for tests, whose host's lock is none: any number of workers hold it. */
#ifndef HOSTED_H
#define HOSTED_H

#include "calls.h"

static inline void no_lock_leave(struct rt_worker *worker)
{
    MT_CHECK(worker->held);
    worker->held = false;
}

static inline void no_lock_idle(struct rt_worker *worker)
{
    MT_CHECK(!worker->held && worker->finished.head == NULL);
}

static inline void no_lock_ended(struct rt_worker *worker)
{
    MT_CHECK(!worker->held);
}

/* Its worker may look for the next one before it sleeps. */
static inline void hosted_run(struct rt_job *job, struct rt_worker *worker)
{
    struct call *call = call_of(job);

    worker->held = worker->expects = true;
    if (atomic_fetch_add(&call->runs, 1) != 0)
        MT_CHECK(!"a job ran twice");
    if (call->body != NULL)
        call->body(call, worker);
    rt_worker_finish(worker, job, RT_OK);
}

static inline void hosted_init(struct call *call, struct rt_mailbox *mb,
                               void (*body)(struct call *, struct rt_worker *), void *arg)
{
    call_init(call, mb, body, arg);
    call->job.run = hosted_run;
    call->job.hosted = true;
}

/* A pool whose workers look for the next hosted call for limit ns. */
static inline struct rt_pool *watching_pool(unsigned workers, uint64_t limit)
{
    static const struct rt_host host = { .leave = no_lock_leave, .idle = no_lock_idle,
                                         .ended = no_lock_ended };
    struct rt_pool *pool;

    MT_REQUIRE(rt_pool_new(workers, 1024, &pool) == RT_OK);
    rt_pool_set_host(pool, &host, (size_t)1 << 20);
    rt_pool_set_busy_poll(pool, limit);
    return pool;
}

#endif
