#include "dues.h"

#include "../runtime/rt_mailbox.h"
#include "bridge.h"
#include "call.h"
#include "errors.h"

static uint64_t due(const struct core_job *job)
{
    return job->due;
}

static void place(struct core_dues *dues, uint32_t i, struct core_job *job)
{
    dues->heap[i] = job;
    job->due_place = i;
}

static void sift_up(struct core_dues *dues, uint32_t i, struct core_job *job)
{
    for (; i > 1 && due(dues->heap[i / 2]) > due(job); i /= 2)
        place(dues, i, dues->heap[i / 2]);
    place(dues, i, job);
}

static void sift_down(struct core_dues *dues, uint32_t i, struct core_job *job)
{
    for (;;) {
        uint32_t child = 2 * i;

        if (child > dues->count)
            break;
        if (child < dues->count && due(dues->heap[child + 1]) < due(dues->heap[child]))
            child++;
        if (due(dues->heap[child]) >= due(job))
            break;
        place(dues, i, dues->heap[child]);
        i = child;
    }
    place(dues, i, job);
}

int core_dues_add(struct core_bridge *bridge, struct core_job *job)
{
    struct core_dues *dues = &bridge->dues;
    int err;

    if (dues->count + 1 >= dues->room) {
        uint32_t room = dues->room == 0 ? 64 : 2 * dues->room;
        struct core_job **heap = realloc(dues->heap, room * sizeof *heap);

        if (heap == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        dues->heap = heap;
        dues->room = room;
    }
    err = rt_mailbox_alarm(bridge->mailbox, due(job));
    if (err != RT_OK)
        return core_raise_err(bridge->st, err, "No timer for the call");
    sift_up(dues, ++dues->count, job);
    return 0;
}

void core_dues_remove(struct core_bridge *bridge, struct core_job *job)
{
    struct core_dues *dues = &bridge->dues;
    uint32_t i = job->due_place;
    struct core_job *last = dues->heap[dues->count--];

    job->due_place = 0;
    if (last == job)
        return;
    if (i > 1 && due(dues->heap[i / 2]) > due(last))
        sift_up(dues, i, last);
    else
        sift_down(dues, i, last);
}

/* Time out one job, if it is not done. */
static int expire(struct core_wake_ctx *w, struct core_bridge *bridge, struct core_job *job)
{
    PyObject *fut = job->rds.base.owner, *exception;
    bool began = false, waits = rt_job_state(&job->rds.base) == RT_JOB_IDLE; /* for room */
    int rc;

    if (fut == NULL) {
        /* Cancelled already. */
        if (rt_job_state(&job->rds.base) == RT_JOB_ABANDONED)
            core_call_interrupt(job);
        return 0;
    }
    if (!waits && !rt_job_move(&job->rds.base, RT_JOB_QUEUED, RT_JOB_CANCELLED)) {
        began = rt_job_move(&job->rds.base, RT_JOB_RUNNING, RT_JOB_ABANDONED);
        if (!began)
            return 0; /* it is done, and on its way here */
    }
    job->rds.base.owner = NULL;
    core_loosen(fut);
    if (began)
        core_call_interrupt(job);
    if (waits)
        core_bridge_unwanted(bridge);
    core_raise_call_timeout(bridge->st, began);
    exception = core_take_exception();
    rc = core_future_settle_exception(w, fut, exception);
    Py_DECREF(exception);
    Py_DECREF(fut);
    return rc;
}

int core_dues_expire(struct core_wake_ctx *w, struct core_bridge *bridge)
{
    struct core_dues *dues = &bridge->dues;
    uint64_t now;
    int rc = 0;

    if (!rt_mailbox_alarmed(bridge->mailbox))
        return 0;
    now = rt_now();
    while (rc == 0 && dues->count > 0 && due(dues->heap[1]) <= now) {
        struct core_job *job = dues->heap[1];

        core_dues_remove(bridge, job);
        rc = expire(w, bridge, job); /* runs other code: the heap may be another */
    }
    /* It could be set before, so it can be set again. */
    if (dues->count > 0)
        (void)rt_mailbox_alarm(bridge->mailbox, due(dues->heap[1]));
    return rc;
}

void core_dues_fini(struct core_dues *dues)
{
    free(dues->heap);
    dues->heap = NULL;
    dues->count = dues->room = 0;
}
