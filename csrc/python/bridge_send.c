/* Jobs on their way out: those that are under way, and those that wait for room. */
#include "bridge.h"

#include "call.h"
#include "errors.h"
#include "pool_type.h"

#define UNWANTED_MAX 64 /* jobs that wait for room and for which nobody waits */

/* Whether the pool's bound is reached. */
static bool is_full(const struct core_bridge *bridge)
{
    return bridge->outstanding - bridge->waiting >= bridge->pool->queue;
}

/* Calls that are out are listed, so that they can be given up together. */
static void list_call(struct core_bridge *bridge, struct core_job *job)
{
    job->prev_call = NULL;
    job->next_call = bridge->calls;
    if (bridge->calls != NULL)
        bridge->calls->prev_call = job;
    bridge->calls = job;
}

static void count_out(struct core_bridge *bridge)
{
    if (core_bridge_under_way(bridge) > bridge->high_water)
        bridge->high_water = core_bridge_under_way(bridge);
}

/* Submit a job that has been admitted. */
static int submit(struct core_bridge *bridge, struct core_job *job)
{
    const bool waits = job->waits;
    int err;

    if (bridge->outstanding++ == 0)
        Py_INCREF(bridge); /* until the last job is home */
    bridge->waiting += job->waits;
    if (job->call != NULL)
        list_call(bridge, job);
    err = job->send(job);
    if (err != RT_OK)
        core_bridge_count_home(bridge, job);
    else if (!waits)
        bridge->busy_poll.sent = true;
    return err;
}

static void tie(struct core_job *job, PyObject *fut)
{
    struct core_future *f = (struct core_future *)fut;

    job->rds.base.owner = Py_NewRef(fut);
    f->link.job = job;
    f->link.cancelled = core_bridge_cancelled;
}

/* ---- room ---------------------------------------------------------------------------
 *
 * Two things may have none.  A loop has so many jobs under way and no more: `parked` waits
 * until one of them is home.  The pool's queue may be full of what others sent:
 * `unqueued` waits until the pool tells, by the seeker.  Commands are not in that queue,
 * so they do not wait behind those. */

static int send_seeker(struct core_job *job)
{
    rt_pool_seek_room(job->bridge->pool->rt, &job->rds.base);
    return RT_OK;
}

/* A job was refused for err.  RT_OK: it may wait, and the pool tells when to try again. */
static int await_room(struct core_bridge *bridge, const struct core_job *job, int err)
{
    if (err != RT_EFULL || job->call == NULL)
        return err;
    if (bridge->seeker != NULL)
        return RT_OK;
    bridge->seeker = core_bridge_job(bridge, RT_NEVER);
    if (bridge->seeker == NULL) {
        PyErr_Clear();
        return RT_ENOMEM;
    }
    bridge->seeker->waits = true;
    bridge->seeker->send = send_seeker;
    return submit(bridge, bridge->seeker);
}

/* Whether a job that was made now comes after others that wait. */
static bool has_to_wait(const struct core_bridge *bridge, const struct core_job *job)
{
    return is_full(bridge) || bridge->parked.head != NULL ||
           (job->call != NULL && bridge->unqueued.head != NULL);
}

static void park(struct core_bridge *bridge, struct core_job *job)
{
    bool behind = job->call != NULL && bridge->unqueued.head != NULL && bridge->parked.head == NULL;

    rt_joblist_append(behind ? &bridge->unqueued : &bridge->parked, &job->rds.base);
}

int core_bridge_send_now(struct core_bridge *bridge, struct core_job *job, PyObject *fut)
{
    int err;

    tie(job, fut);
    err = submit(bridge, job);
    if (err == RT_OK) {
        count_out(bridge);
        return RT_OK;
    }
    err = await_room(bridge, job, err);
    if (err == RT_OK) {
        rt_joblist_append(&bridge->unqueued, &job->rds.base);
        return RT_OK;
    }
    job->rds.base.owner = NULL;
    core_untie(fut);
    core_bridge_recycle(bridge, job);
    return err;
}

/* A job cannot be sent. */
static int refuse(struct core_bridge *bridge, int err, bool call)
{
    return call ? core_raise_call_err(bridge->st, err)
                : core_raise_err(bridge->st, err, "The command cannot be sent");
}

int core_bridge_send(struct core_bridge *bridge, struct core_job *job, PyObject *fut)
{
    bool call = job->call != NULL;
    int err;

    if (!job->waits && has_to_wait(bridge, job)) {
        tie(job, fut);
        park(bridge, job);
        return 0;
    }
    err = core_bridge_send_now(bridge, job, fut);
    return err == RT_OK ? 0 : refuse(bridge, err, call);
}

int core_bridge_send_all(struct core_bridge *bridge, struct core_job **jobs, PyObject **futs,
                         size_t count, int (*send_all)(struct core_job *, struct rt_joblist *))
{
    struct rt_joblist list;
    size_t i, room = 0;
    int err = RT_OK;

    if (!has_to_wait(bridge, jobs[0]))
        room = bridge->pool->queue - (bridge->outstanding - bridge->waiting);
    if (room > count)
        room = count;
    rt_joblist_init(&list);
    for (i = 0; i < count; i++) {
        tie(jobs[i], futs[i]);
        if (i < room)
            rt_joblist_append(&list, &jobs[i]->rds.base);
    }
    if (room > 0) {
        if (bridge->outstanding == 0)
            Py_INCREF(bridge); /* until the last job is home */
        bridge->outstanding += room;
        for (i = 0; i < room; i++)
            list_call(bridge, jobs[i]);
        err = send_all(jobs[0], &list);
        if (err != RT_OK) {
            for (i = 0; i < room; i++)
                core_bridge_count_home(bridge, jobs[i]);
            err = await_room(bridge, jobs[0], err);
            for (i = 0; err == RT_OK && i < room; i++)
                rt_joblist_append(&bridge->unqueued, &jobs[i]->rds.base);
        }
    }
    if (err == RT_OK) {
        for (i = room; i < count; i++)
            park(bridge, jobs[i]);
        count_out(bridge);
        return 0;
    }
    for (i = 0; i < count; i++) {
        jobs[i]->rds.base.owner = NULL;
        core_untie(futs[i]);
        core_bridge_recycle(bridge, jobs[i]);
    }
    return refuse(bridge, err, true);
}

/* Fail a job that waited and cannot be sent.  -1: stop, an exception is set. */
static int refuse_late(struct core_wake_ctx *w, struct core_bridge *bridge, struct core_job *job,
                       int err)
{
    PyObject *fut = job->rds.base.owner, *exception;
    bool call = job->call != NULL;
    int rc;

    job->rds.base.owner = NULL;
    core_loosen(fut); /* first: what the job keeps runs code as it goes, and may cancel fut */
    core_bridge_recycle(bridge, job);
    refuse(bridge, err, call);
    exception = core_take_exception();
    rc = core_future_settle_exception(w, fut, exception);
    Py_DECREF(exception);
    Py_DECREF(fut);
    return rc;
}

/* Send what waits in list while there is room.  -1: stop, an exception is set. */
static int unpark(struct core_wake_ctx *w, struct core_bridge *bridge, struct rt_joblist *list)
{
    while (list->head != NULL && !is_full(bridge)) {
        struct core_job *job = core_job_of(rt_joblist_pop(list));
        bool moves = list == &bridge->parked && job->call != NULL, behind;
        struct rt_joblist first;
        int err;

        if (job->rds.base.owner == NULL) {
            core_bridge_recycle(bridge, job); /* cancelled meanwhile */
            continue;
        }
        behind = moves && bridge->unqueued.head != NULL; /* calls that are before it wait */
        err = behind ? RT_EFULL : submit(bridge, job);
        if (err == RT_OK) {
            count_out(bridge);
            continue;
        }
        err = await_room(bridge, job, err);
        if (err != RT_OK) {
            if (refuse_late(w, bridge, job, err) < 0)
                return -1;
            continue;
        }
        if (moves) {
            rt_joblist_append(&bridge->unqueued, &job->rds.base);
            continue;
        }
        rt_joblist_init(&first);
        rt_joblist_append(&first, &job->rds.base);
        rt_joblist_prepend_all(list, &first);
        break;
    }
    return 0;
}

int core_bridge_unpark(struct core_wake_ctx *w, struct core_bridge *bridge)
{
    int rc = 0;

    if (bridge->unqueued.head != NULL)
        rc = unpark(w, bridge, &bridge->unqueued);
    if (rc == 0 && bridge->parked.head != NULL)
        rc = unpark(w, bridge, &bridge->parked);
    return rc;
}

/* The job that has waited longest, or NULL. */
static struct core_job *pop_unsent(struct core_bridge *bridge)
{
    struct rt_job *base = rt_joblist_pop(&bridge->unqueued);

    if (base == NULL)
        base = rt_joblist_pop(&bridge->parked);
    return base == NULL ? NULL : core_job_of(base);
}

int core_bridge_refuse_unsent(struct core_wake_ctx *w, struct core_bridge *bridge)
{
    struct core_job *job;
    int rc = 0;

    while (rc == 0 && (job = pop_unsent(bridge)) != NULL) {
        if (job->rds.base.owner == NULL)
            core_bridge_recycle(bridge, job);
        else
            rc = refuse_late(w, bridge, job, RT_ECLOSED);
    }
    return rc;
}

/* Take out of list what nobody waits for. */
static void sweep(struct rt_joblist *list, struct rt_joblist *out)
{
    struct rt_joblist kept;
    struct rt_job *job;

    rt_joblist_init(&kept);
    while ((job = rt_joblist_pop(list)) != NULL)
        rt_joblist_append(job->owner != NULL ? &kept : out, job);
    *list = kept;
}

void core_bridge_unwanted(struct core_bridge *bridge)
{
    struct rt_joblist out;
    struct rt_job *job;

    if (++bridge->unwanted <= UNWANTED_MAX || bridge->unwanted < core_bridge_unsent(bridge) / 2)
        return;
    bridge->unwanted = 0;
    rt_joblist_init(&out);
    sweep(&bridge->unqueued, &out);
    sweep(&bridge->parked, &out);
    Py_INCREF(bridge); /* what they keep runs code as it goes, and may end the loop */
    while ((job = rt_joblist_pop(&out)) != NULL)
        core_bridge_recycle(bridge, core_job_of(job));
    Py_DECREF(bridge);
}

static void loosen_all(struct rt_joblist *list)
{
    struct rt_job *job;

    for (job = list->head; job != NULL; job = job->next) {
        if (job->owner != NULL)
            core_loosen(job->owner);
    }
}

void core_bridge_drop_unsent(struct core_bridge *bridge)
{
    struct core_job *job;

    /* All of them first, since the code that runs below may cancel any. */
    loosen_all(&bridge->unqueued);
    loosen_all(&bridge->parked);
    while ((job = pop_unsent(bridge)) != NULL) {
        PyObject *fut = job->rds.base.owner;

        job->rds.base.owner = NULL;
        core_bridge_recycle(bridge, job);
        Py_XDECREF(fut);
    }
}
