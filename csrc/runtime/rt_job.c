#include "rt_job.h"

/* The moves that the states' picture in rt_job.h shows. */
static bool legal(enum rt_job_state from, enum rt_job_state to)
{
    switch (from) {
    case RT_JOB_IDLE:
        return to == RT_JOB_QUEUED;
    case RT_JOB_QUEUED:
        return to == RT_JOB_RUNNING || to == RT_JOB_CANCELLED || to == RT_JOB_DONE;
    case RT_JOB_RUNNING:
        return to == RT_JOB_QUEUED || to == RT_JOB_ABANDONED || to == RT_JOB_DONE;
    case RT_JOB_CANCELLED:
    case RT_JOB_ABANDONED:
        return to == RT_JOB_DONE;
    case RT_JOB_DONE:
        return to == RT_JOB_IDLE;
    }
    return false;
}

bool rt_job_move(struct rt_job *job, enum rt_job_state from, enum rt_job_state to)
{
    uint8_t expected = (uint8_t)from;

    RT_CHECK(legal(from, to));
    /* Partner: the other side's compare and exchange in rt_job_move,
     * rt_job_cancel or rt_job_finish. */
    return atomic_compare_exchange_strong_explicit(&job->state, &expected, (uint8_t)to,
                                                   memory_order_acq_rel, memory_order_acquire);
}

bool rt_job_cancel(struct rt_job *job)
{
    for (;;) {
        if (rt_job_move(job, RT_JOB_QUEUED, RT_JOB_CANCELLED))
            return true;
        if (rt_job_move(job, RT_JOB_RUNNING, RT_JOB_ABANDONED))
            return true;
        /* A worker may have put it back in between: look again. */
        if (rt_job_state(job) != RT_JOB_QUEUED && rt_job_state(job) != RT_JOB_RUNNING)
            return false;
    }
}

bool rt_job_finish(struct rt_job *job, int err)
{
    uint8_t was;

    job->err = err;
    was = atomic_exchange_explicit(&job->state, RT_JOB_DONE, memory_order_acq_rel);
    RT_CHECK(legal((enum rt_job_state)was, RT_JOB_DONE));
    return was == RT_JOB_QUEUED || was == RT_JOB_RUNNING;
}
