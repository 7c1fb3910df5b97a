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
    core_bridge_count_home(bridge, job);
    core_bridge_recycle(bridge, job);
    Py_DECREF(bridge);
}

void core_bridge_cancelled(struct core_state *st, PyObject *fut, void *link)
{
    struct core_job *job = link;
    PyObject *owner = ((struct core_future *)fut)->owner;

    job->rds.base.owner = NULL;
    if (rt_job_state(&job->rds.base) == RT_JOB_IDLE)
        core_bridge_unwanted(job->bridge); /* it waits for room */
    else if (owner != NULL && Py_IS_TYPE(owner, st->native.channel_type))
        (void)rds_channel_cancel(((struct core_channel *)owner)->rds, &job->rds);
    else if (owner != NULL && Py_IS_TYPE(owner, st->native.lease_type))
        withdraw(owner, job);
    else if (rt_job_cancel(&job->rds.base) && job->call != NULL &&
             rt_job_state(&job->rds.base) != RT_JOB_CANCELLED)
        core_call_interrupt(job);
    Py_DECREF(fut); /* the job's; the caller holds another */
}

/* Take a call off the list of those that are out. */
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

void core_bridge_count_home(struct core_bridge *bridge, struct core_job *job)
{
    if (job->call != NULL)
        unlist_call(bridge, job);
    if (job == bridge->seeker)
        bridge->seeker = NULL;
    bridge->waiting -= job->waits;
    if (--bridge->outstanding == 0 && bridge->orphan)
        set_orphan(bridge, false);
    if (bridge->outstanding == 0)
        Py_DECREF(bridge); /* never the last one: whoever calls holds another */
}

void core_bridge_forget(struct core_job *job)
{
    PyObject *fut = job->rds.base.owner, *lease = Py_NewRef(((struct core_future *)fut)->owner);

    job->rds.base.owner = NULL;
    core_loosen(fut);
    withdraw(lease, job);
    Py_DECREF(fut);
    Py_DECREF(lease);
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
    core_bridge_count_home(bridge, job);
    job->rds.base.owner = NULL;
    if (fut == NULL) {
        core_bridge_recycle(bridge, job);
        return 0;
    }
    /* It may go on without the job, and be cancelled then: a reply that is fetched
     * again, or one that goes through an asynchronous callback. */
    core_loosen(fut);
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
        if (rc < 0)
            break;
        if (++handled >= DRAIN_MAX) {
            rt_mailbox_again(bridge->mailbox);
            break;
        }
    }
    if (rc == 0)
        rc = core_dues_expire(&w, bridge);
    if (rc == 0)
        rc = core_bridge_unpark(&w, bridge);
    if (rc < 0)
        rt_mailbox_again(bridge->mailbox); /* for what is left of all that */
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
        if (fut != NULL)
            core_loosen(fut); /* first: what the job keeps may cancel it as it goes */
        core_bridge_count_home(bridge, job);
        core_bridge_recycle(bridge, job);
        Py_XDECREF(fut);
    }
    core_bridge_drop_unsent(bridge);
    Py_DECREF(bridge);
}
