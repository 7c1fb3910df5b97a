#include "bridge.h"

#include "call.h"
#include "caller_type.h"
#include "channel_type.h"
#include "errors.h"
#include "host.h"
#include "lease_type.h"
#include "pool_type.h"

/* Jobs handled in one turn of the loop: then timers and sockets have theirs. */
#define DRAIN_MAX 512
#define HOLD_NS (100 * RT_US) /* a command waits so long for company */
#define HELD_LEAST 8  /* commands that are worth a send of their own */
#define HELD_PARTS 2  /* of what is under way: the server has one, the loop the other */
#define FREE_MAX 4096 /* jobs kept for reuse, 256 bytes and a bit each */

/* ---- jobs ---------------------------------------------------------------------- */

struct core_job *core_bridge_job(struct core_bridge *bridge, uint64_t deadline)
{
    struct core_job *job = bridge->free;

    if (job != NULL) {
        bridge->free = job->rds.base.next != NULL ? core_job_of(job->rds.base.next) : NULL;
        bridge->free_count--;
    } else {
        job = malloc(sizeof *job);
        if (job == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
    }
    rds_job_init(&job->rds, bridge->mailbox, deadline);
    job->finish = NULL;
    job->empty_response = NULL;
    job->keep = NULL;
    job->bridge = bridge;
    job->send = NULL;
    job->call = NULL;
    job->due_place = 0;
    job->raw = job->waits = false;
    return job;
}

void core_bridge_recycle(struct core_bridge *bridge, struct core_job *job)
{
    if (job->due_place != 0)
        core_dues_remove(bridge, job);
    if (job->call != NULL) {
        core_call_free(bridge->st, job->call);
        job->call = NULL;
        if (job->keep != NULL)
            ((struct core_lane *)job->keep)->pending--;
    }
    rds_job_fini(&job->rds);
    Py_CLEAR(job->empty_response);
    Py_CLEAR(job->keep);
    if (bridge->free_count >= FREE_MAX) {
        free(job);
        return;
    }
    job->rds.base.next = bridge->free != NULL ? &bridge->free->rds.base : NULL;
    bridge->free = job;
    bridge->free_count++;
}

static void count_home(struct core_bridge *bridge, struct core_job *job);

/* A job that waits at a lease is not wanted any more: take it back, unless it is on its
 * way home. */
static void withdraw(PyObject *lease, struct core_job *job)
{
    struct core_bridge *bridge = job->bridge;

    if (!core_lease_withdraw(lease, job)) {
        (void)rt_job_cancel(&job->rds.base);
        return;
    }
    Py_INCREF(bridge);
    count_home(bridge, job);
    core_bridge_recycle(bridge, job);
    Py_DECREF(bridge);
}

/* The future was cancelled: nobody waits for the job any more. */
static void job_cancelled(struct core_state *st, PyObject *fut, void *link)
{
    struct core_job *job = link;
    PyObject *owner = ((struct core_future *)fut)->owner;

    job->rds.base.owner = NULL;
    if (rt_job_state(&job->rds.base) == RT_JOB_IDLE)
        ; /* still parked: it is dropped when its turn comes */
    else if (owner != NULL && Py_IS_TYPE(owner, st->native.channel_type))
        (void)rds_channel_cancel(((struct core_channel *)owner)->rds, &job->rds);
    else if (owner != NULL && Py_IS_TYPE(owner, st->native.lease_type))
        withdraw(owner, job);
    else if (rt_job_cancel(&job->rds.base) && job->call != NULL &&
             rt_job_state(&job->rds.base) != RT_JOB_CANCELLED)
        core_call_interrupt(job);
    Py_DECREF(fut); /* the job's; the caller holds another */
}

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

static void unlist_call(struct core_bridge *bridge, struct core_job *job)
{
    if (job->next_call != NULL)
        job->next_call->prev_call = job->prev_call;
    if (job->prev_call != NULL)
        job->prev_call->next_call = job->next_call;
    else
        bridge->calls = job->next_call;
}

/* List the bridge with those whose jobs come home to nobody, or take it off. */
static void set_orphan(struct core_bridge *bridge, bool orphan)
{
    struct core_host *host = bridge->st->native.host;
    struct core_bridge **link = &host->orphans;

    if (bridge->orphan == orphan)
        return;
    bridge->orphan = orphan;
    if (orphan) {
        bridge->next_orphan = host->orphans;
        host->orphans = bridge;
        atomic_fetch_add(&host->orphan_count, 1);
        return;
    }
    while (*link != NULL && *link != bridge)
        link = &(*link)->next_orphan;
    if (*link == NULL)
        return; /* a forked child has forgotten them */
    *link = bridge->next_orphan;
    atomic_fetch_sub(&host->orphan_count, 1);
}

static void count_home(struct core_bridge *bridge, struct core_job *job)
{
    if (job->call != NULL)
        unlist_call(bridge, job);
    bridge->waiting -= job->waits;
    if (--bridge->outstanding == 0 && bridge->orphan)
        set_orphan(bridge, false);
    if (bridge->outstanding == 0)
        Py_DECREF(bridge); /* never the last one: whoever calls holds another */
}

static void count_out(struct core_bridge *bridge)
{
    if (bridge->outstanding > bridge->high_water)
        bridge->high_water = bridge->outstanding;
}

/* Submit a job that has been admitted. */
static int submit(struct core_bridge *bridge, struct core_job *job)
{
    int err;

    if (bridge->outstanding++ == 0)
        Py_INCREF(bridge); /* until the last job is home */
    bridge->waiting += job->waits;
    bridge->busy_poll.sent |= !job->waits;
    if (job->call != NULL)
        list_call(bridge, job);
    err = job->send(job);
    if (err != RT_OK)
        count_home(bridge, job);
    return err;
}

static void tie(struct core_job *job, PyObject *fut)
{
    struct core_future *f = (struct core_future *)fut;

    job->rds.base.owner = Py_NewRef(fut);
    f->link.job = job;
    f->link.cancelled = job_cancelled;
}

/* The future knows of no job any more: the reference is the caller's. */
static void loosen(PyObject *fut)
{
    struct core_future *f = (struct core_future *)fut;

    f->link.job = NULL;
    f->link.cancelled = NULL;
}

static void untie(PyObject *fut)
{
    loosen(fut);
    Py_DECREF(fut);
}

void core_bridge_forget(struct core_job *job)
{
    PyObject *fut = job->rds.base.owner, *lease = Py_NewRef(((struct core_future *)fut)->owner);

    job->rds.base.owner = NULL;
    withdraw(lease, job);
    untie(fut);
    Py_DECREF(lease);
}

/* Whether a job that was refused for err may wait for room: the pool is full of what
 * others sent, and something of ours will come home, after which it is tried again. */
static bool may_wait(const struct core_bridge *bridge, const struct core_job *job, int err)
{
    return err == RT_EFULL && job->call != NULL && bridge->outstanding > 0;
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
    if (may_wait(bridge, job, err)) {
        rt_joblist_append(&bridge->parked, &job->rds.base);
        return RT_OK;
    }
    job->rds.base.owner = NULL;
    untie(fut);
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

    if (!job->waits && (is_full(bridge) || bridge->parked.head != NULL)) {
        tie(job, fut);
        rt_joblist_append(&bridge->parked, &job->rds.base);
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

    if (bridge->parked.head == NULL && !is_full(bridge))
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
        for (i = 0; err != RT_OK && i < room; i++)
            count_home(bridge, jobs[i]);
        if (err != RT_OK && may_wait(bridge, jobs[0], err)) {
            room = 0;
            err = RT_OK;
        }
    }
    if (err == RT_OK) {
        for (i = room; i < count; i++)
            rt_joblist_append(&bridge->parked, &jobs[i]->rds.base);
        count_out(bridge);
        return 0;
    }
    for (i = 0; i < count; i++) {
        jobs[i]->rds.base.owner = NULL;
        untie(futs[i]);
        core_bridge_recycle(bridge, jobs[i]);
    }
    return refuse(bridge, err, true);
}

/* Send what waited for room. */
static int unpark(struct core_wake_ctx *w, struct core_bridge *bridge)
{
    while (bridge->parked.head != NULL && !is_full(bridge)) {
        struct core_job *job = core_job_of(rt_joblist_pop(&bridge->parked));
        PyObject *fut = job->rds.base.owner, *exception;
        bool call = job->call != NULL;
        struct rt_joblist first;
        int err;

        if (fut == NULL) {
            core_bridge_recycle(bridge, job); /* cancelled meanwhile */
            continue;
        }
        err = submit(bridge, job);
        if (err == RT_OK) {
            count_out(bridge);
            continue;
        }
        if (may_wait(bridge, job, err)) {
            rt_joblist_init(&first);
            rt_joblist_append(&first, &job->rds.base);
            rt_joblist_prepend_all(&bridge->parked, &first);
            return 0;
        }
        core_bridge_recycle(bridge, job);
        loosen(fut);
        refuse(bridge, err, call);
        exception = core_take_exception();
        err = core_future_settle_exception(w, fut, exception);
        Py_DECREF(exception);
        Py_DECREF(fut);
        if (err < 0)
            return -1;
    }
    return 0;
}

/* ---- sending together ------------------------------------------------------------ */

static void kick_held(struct core_bridge *bridge)
{
    struct core_channel *channel = bridge->held;

    if (channel == NULL)
        return;
    bridge->held = NULL;
    rds_channel_kick(channel->rds);
    Py_DECREF(channel);
}

/* The time, as of the command that the last step of a task made, or of now. */
static uint64_t now_of(const struct core_bridge *bridge)
{
    return bridge->ticked ? bridge->clock : rt_now();
}

/* How many commands are sent without waiting for more.  When all that is under way came
 * back at once and went out at once, the server would stand still while the loop works,
 * and the loop while the server does: in parts they work at the same time. */
static uint64_t part_of(const struct core_bridge *bridge)
{
    uint64_t part = (bridge->outstanding - bridge->waiting) / HELD_PARTS;

    return part > HELD_LEAST ? part : HELD_LEAST;
}

void core_bridge_kick(struct core_bridge *bridge, struct core_channel *channel)
{
    if (bridge->draining == 0 || rds_channel_alone(channel->rds)) {
        rds_channel_kick_one(channel->rds);
        return;
    }
    if (bridge->held != channel) {
        kick_held(bridge);
        bridge->held = (struct core_channel *)Py_NewRef(channel);
        bridge->held_count = 0;
        bridge->held_since = now_of(bridge);
        rds_channel_hold(channel->rds, bridge->held_since);
    }
    if (++bridge->held_count >= part_of(bridge))
        kick_held(bridge);
}

/* ---- the drain ------------------------------------------------------------------ */

/* Hand one job that came home to its maker.  -1: stop, an exception is set. */
static int handle(struct core_wake_ctx *w, struct core_bridge *bridge, struct core_job *job)
{
    PyObject *fut = job->rds.base.owner;
    int rc = 0;

    if (job->rds.base.kind == CORE_JOB_VISITOR)
        return job->finish(w, bridge, job, NULL);
    RT_CHECK(rt_job_move(&job->rds.base, RT_JOB_DONE, RT_JOB_IDLE));
    count_home(bridge, job);
    job->rds.base.owner = NULL;
    if (fut == NULL) {
        core_bridge_recycle(bridge, job);
        return 0;
    }
    /* It may go on without the job, and be cancelled then: a reply that is fetched
     * again, or one that goes through an asynchronous callback. */
    loosen(fut);
    rc = job->finish(w, bridge, job, fut);
    return rc;
}

/* Settle what has come home.  -1: stop, an exception is set. */
static int drain(struct core_bridge *bridge, PyObject *loop)
{
    struct core_wake_ctx w;
    struct rt_job *base;
    unsigned handled = 0;
    int rc = 0;

    rt_mailbox_begin(bridge->mailbox);
    bridge->drains++;
    if (core_wake_begin(bridge->st, loop, &w) < 0) {
        rt_mailbox_again(bridge->mailbox);
        return -1;
    }
    bridge->debug = w.debug;
    bridge->draining++;
    while ((base = rt_mailbox_next(bridge->mailbox)) != NULL) {
        bridge->ticked = false;
        rc = handle(&w, bridge, core_job_of(base));
        if (bridge->held != NULL && now_of(bridge) - bridge->held_since > HOLD_NS)
            kick_held(bridge);
        if (rc < 0 || ++handled >= DRAIN_MAX) {
            rt_mailbox_again(bridge->mailbox);
            break;
        }
    }
    if (rc == 0)
        rc = core_dues_expire(&w, bridge);
    if (rc == 0 && bridge->parked.head != NULL)
        rc = unpark(&w, bridge);
    if (handled >= DRAIN_MAX)
        bridge->busy_poll.sent = false; /* the loop has its turn first */
    if (--bridge->draining == 0)
        Py_CLEAR(bridge->mark);
    kick_held(bridge);
    core_wake_end(&w);
    return rc;
}

/* Whether more has come home by now. */
static bool has_more(struct core_bridge *bridge)
{
    return bridge->draining == 0 && bridge->outstanding > bridge->waiting &&
           core_busy_poll(&bridge->busy_poll, bridge->mailbox->fd, bridge->calls != NULL);
}

/* Whether it is this process's, and its loop still has it: the steps of tasks may have
 * forked, or closed things. */
static bool is_ours(const struct core_bridge *bridge)
{
    return bridge->listed && !rt_pool_forked(bridge->pool->rt);
}

PyObject *core_bridge_drain(PyObject *op, PyObject *unused)
{
    struct core_bridge *bridge = (struct core_bridge *)op;
    PyObject *loop = core_weak_borrowed(bridge->loop_ref);
    int rc;

    (void)unused;
    if (loop == NULL)
        Py_RETURN_NONE;
    if (!is_ours(bridge))
        Py_RETURN_NONE; /* a forked child on its parent's loop: nothing here is its own */
    Py_INCREF(loop);
    Py_INCREF(bridge);
    core_busy_poll_begin(&bridge->busy_poll);
    do
        rc = drain(bridge, loop);
    while (rc == 0 && is_ours(bridge) && has_more(bridge));
    Py_DECREF(bridge);
    Py_DECREF(loop);
    if (rc < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Drop everything: the loop is closed, nobody can be woken. */
void core_bridge_discard(struct core_bridge *bridge)
{
    struct rt_job *base;

    Py_INCREF(bridge);
    /* Before looking: a worker posts and then looks at the list.  Partner: idle(). */
    if (bridge->outstanding > 0)
        set_orphan(bridge, true);
    rt_fence();
    rt_mailbox_begin(bridge->mailbox);
    while ((base = rt_mailbox_next(bridge->mailbox)) != NULL) {
        struct core_job *job = core_job_of(base);
        PyObject *fut = base->owner;

        if (base->kind == CORE_JOB_VISITOR) {
            (void)job->finish(NULL, bridge, job, NULL);
            continue;
        }
        RT_CHECK(rt_job_move(base, RT_JOB_DONE, RT_JOB_IDLE));
        base->owner = NULL;
        count_home(bridge, job);
        core_bridge_recycle(bridge, job);
        if (fut != NULL)
            untie(fut);
    }
    while ((base = rt_joblist_pop(&bridge->parked)) != NULL) {
        PyObject *fut = base->owner;

        base->owner = NULL;
        core_bridge_recycle(bridge, core_job_of(base));
        if (fut != NULL)
            untie(fut);
    }
    Py_DECREF(bridge);
}
