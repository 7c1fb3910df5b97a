/* Pool jobs for tests: a call with a body, an owner who waits for it to come
 * home, and a count of how often it did. */
#ifndef CALLS_H
#define CALLS_H

#include "rest.h"
#include "rt_pool.h"
#include "threads.h"

struct call {
    struct rt_job job;
    void (*body)(struct call *call, struct rt_worker *worker); /* NULL: nothing */
    void *arg;
    atomic_uint runs, homes;
};

static inline struct call *call_of(struct rt_job *job)
{
    return RT_CONTAINER_OF(job, struct call, job);
}

static inline void call_run(struct rt_job *job, struct rt_worker *worker)
{
    struct call *call = call_of(job);

    if (atomic_fetch_add(&call->runs, 1) != 0)
        MT_CHECK(!"a job ran twice");
    if (call->body != NULL)
        call->body(call, worker);
    rt_pool_complete(job, RT_OK);
}

static inline void call_init(struct call *call, struct rt_mailbox *mb,
                             void (*body)(struct call *, struct rt_worker *), void *arg)
{
    rt_job_init(&call->job, mb, RT_NEVER);
    call->job.run = call_run;
    call->body = body;
    call->arg = arg;
    atomic_store(&call->runs, 0);
    atomic_store(&call->homes, 0);
}

/* The next call that comes home; NULL when none does within ms. */
static inline struct call *call_next(struct rt_mailbox *mb, int ms)
{
    struct rt_job *job;
    struct call *call;

    for (;;) {
        rt_mailbox_begin(mb);
        job = rt_mailbox_next(mb);
        if (job != NULL)
            break;
        if (!mt_readable(mb->fd, ms))
            return NULL;
    }
    rt_mailbox_again(mb);
    call = call_of(job);
    MT_EQ(rt_job_state(job), RT_JOB_DONE);
    if (atomic_fetch_add(&call->homes, 1) != 0)
        MT_CHECK(!"a job came home twice");
    return call;
}

/* Wait for that very call. */
static inline bool call_home(struct rt_mailbox *mb, struct call *call)
{
    while (atomic_load(&call->homes) == 0) {
        if (call_next(mb, MT_HANG_MS) == NULL)
            return MT_CHECK(!"a job did not come home");
    }
    return true;
}

/* A gate that bodies wait at. */
struct gate {
    atomic_uint waiting, open;
};

static inline void wait_at_gate(struct call *call, struct rt_worker *worker)
{
    struct gate *gate = call->arg;

    (void)worker;
    atomic_fetch_add(&gate->waiting, 1);
    while (!atomic_load(&gate->open))
        mt_sleep_ms(1);
}

/* Close the pool for good and wait for its last thread. */
static inline void end_pool(struct rt_pool *pool, struct rt_mailbox *mb)
{
    struct call last;

    call_init(&last, mb, NULL, NULL);
    MT_EQ(rt_pool_close(pool, RT_NEVER, &last.job), RT_OK);
    call_home(mb, &last);
    MT_EQ(last.job.err, RT_OK);
    MT_CHECK(rt_pool_wait(pool, rt_now() + 60 * RT_SEC));
    rt_pool_release(pool);
}

#endif
