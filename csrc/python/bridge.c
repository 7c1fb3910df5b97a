#include "bridge.h"

#include "call.h"
#include "channel_type.h"
#include "errors.h"
#include "host.h"
#include "lease_type.h"
#include "pool_type.h"

/* Jobs handled in one turn of the loop: then timers and sockets have theirs. */
#define DRAIN_MAX 512
#define HOLD_NS (100 * UINT64_C(1000)) /* a command waits so long for company */
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
    else
        (void)rt_job_cancel(&job->rds.base);
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

void core_bridge_kick(struct core_bridge *bridge, struct core_channel *channel)
{
    if (bridge->draining == 0 || rds_channel_alone(channel->rds)) {
        rds_channel_kick_one(channel->rds);
        return;
    }
    if (bridge->held == channel)
        return;
    kick_held(bridge);
    bridge->held = (struct core_channel *)Py_NewRef(channel);
    bridge->held_since = rt_now();
    rds_channel_hold(channel->rds, bridge->held_since);
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

static PyObject *drain(PyObject *op, PyObject *unused)
{
    struct core_bridge *bridge = (struct core_bridge *)op;
    PyObject *loop = core_weak_borrowed(bridge->loop_ref);
    struct core_wake_ctx w;
    struct rt_job *base;
    unsigned handled = 0;
    int rc = 0;

    (void)unused;
    if (loop == NULL)
        Py_RETURN_NONE;
    if (!bridge->listed || rt_pool_forked(bridge->pool->rt))
        Py_RETURN_NONE; /* a forked child on its parent's loop: nothing here is its own */
    Py_INCREF(loop);
    Py_INCREF(bridge);
    rt_mailbox_begin(bridge->mailbox);
    bridge->drains++;
    if (core_wake_begin(bridge->st, loop, &w) < 0) {
        rc = -1;
        rt_mailbox_again(bridge->mailbox);
        goto done;
    }
    bridge->debug = w.debug;
    bridge->draining++;
    while ((base = rt_mailbox_next(bridge->mailbox)) != NULL) {
        rc = handle(&w, bridge, core_job_of(base));
        if (bridge->held != NULL && rt_now() - bridge->held_since > HOLD_NS)
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
    if (--bridge->draining == 0)
        Py_CLEAR(bridge->mark);
    kick_held(bridge);
    core_wake_end(&w);
done:
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

void core_bridge_discard_orphans(struct core_host *host)
{
    struct core_bridge *bridge = host->orphans;

    while (bridge != NULL) {
        struct core_bridge *next;

        Py_INCREF(bridge);
        core_bridge_discard(bridge);
        next = bridge->orphan ? bridge->next_orphan : host->orphans; /* one less: begin anew */
        Py_DECREF(bridge);
        bridge = next;
    }
}

/* Whether the bridge's loop can never run again. */
bool core_bridge_is_homeless(struct core_bridge *bridge)
{
    PyObject *loop = core_weak_borrowed(bridge->loop_ref), *answer;
    bool closed = true;

    if (loop == NULL)
        return true;
    Py_INCREF(loop);
    answer = PyObject_CallMethodNoArgs(loop, bridge->st->native.str_is_closed);
    Py_DECREF(loop);
    if (answer == NULL)
        PyErr_Clear();
    else
        closed = PyObject_IsTrue(answer) == 1;
    Py_XDECREF(answer);
    return closed;
}

void core_bridge_reap(struct core_pool *pool)
{
    struct core_bridge *bridge = pool->bridges, *gone[16];
    unsigned count = 0, i;

    for (; bridge != NULL && count < 16; bridge = bridge->next) {
        if (bridge->outstanding + bridge->parked.count > 0)
            gone[count++] = (struct core_bridge *)Py_NewRef(bridge);
    }
    for (i = 0; i < count; i++) {
        if (core_bridge_is_homeless(gone[i]))
            core_bridge_discard(gone[i]);
        Py_DECREF(gone[i]);
    }
    /* The rest, if any, has its turn at the next call. */
}

/* ---- making one ------------------------------------------------------------------- */

static struct core_bridge *find(struct core_pool *pool, PyObject *loop)
{
    struct core_bridge *bridge = pool->last;

    if (bridge != NULL && core_weak_borrowed(bridge->loop_ref) == loop)
        return bridge;
    for (bridge = pool->bridges; bridge != NULL; bridge = bridge->next) {
        if (core_weak_borrowed(bridge->loop_ref) == loop) {
            pool->last = bridge;
            return bridge;
        }
    }
    return NULL;
}

static int start_reading(struct core_bridge *bridge, PyObject *loop)
{
    PyObject *fd = PyLong_FromLong(bridge->mailbox->fd), *call = NULL, *done = NULL;
    PyObject *debug = NULL;

    if (fd != NULL)
        call = PyObject_GetAttrString((PyObject *)bridge, "_drain");
    if (call != NULL)
        done = PyObject_CallMethodObjArgs(loop, bridge->st->native.str_add_reader, fd, call, NULL);
    if (done != NULL)
        debug = PyObject_CallMethodNoArgs(loop, bridge->st->names.get_debug);
    if (debug != NULL)
        bridge->debug = PyObject_IsTrue(debug) == 1;
    bridge->reading = done != NULL;
    Py_XDECREF(debug);
    Py_XDECREF(done);
    Py_XDECREF(call);
    Py_XDECREF(fd);
    return debug == NULL ? -1 : 0;
}

/* A loop was collected: what came home for it, and later, is dropped. */
static PyObject *loop_died(PyObject *pool_ref, PyObject *unused)
{
    struct core_pool *pool = (struct core_pool *)core_weak_borrowed(pool_ref);

    (void)unused;
    if (pool != NULL && pool->rt != NULL && !rt_pool_forked(pool->rt)) {
        Py_INCREF(pool);
        core_bridge_reap(pool);
        Py_DECREF(pool);
    }
    Py_RETURN_NONE;
}

static PyMethodDef loop_died_def = { "_loop_died", loop_died, METH_O, NULL };

/* Its callback knows the pool by a weak reference: the bridge keeps the pool. */
static PyObject *make_loop_ref(struct core_pool *pool, PyObject *loop)
{
    PyObject *pool_ref = PyWeakref_NewRef((PyObject *)pool, NULL), *callback = NULL, *ref = NULL;

    if (pool_ref != NULL)
        callback = PyCFunction_New(&loop_died_def, pool_ref);
    if (callback != NULL)
        ref = PyWeakref_NewRef(loop, callback);
    Py_XDECREF(callback);
    Py_XDECREF(pool_ref);
    return ref;
}

static struct core_bridge *make(struct core_pool *pool, PyObject *loop)
{
    struct core_native_state *native = &pool->st->native;
    struct core_bridge *bridge;
    int err;

    core_bridge_reap(pool);
    bridge = PyObject_GC_New(struct core_bridge, native->bridge_type);
    if (bridge == NULL)
        return NULL;
    memset((char *)bridge + sizeof(PyObject), 0, sizeof *bridge - sizeof(PyObject));
    bridge->st = core_state_hold(pool->st);
    bridge->pool = (struct core_pool *)Py_NewRef(pool);
    rt_joblist_init(&bridge->parked);
    bridge->loop_ref = make_loop_ref(pool, loop);
    PyObject_GC_Track(bridge);
    if (bridge->loop_ref == NULL)
        goto fail;
    err = rt_mailbox_new(&bridge->mailbox);
    if (err != RT_OK) {
        core_raise_err(pool->st, err, "No mailbox for the event loop");
        goto fail;
    }
    if (start_reading(bridge, loop) < 0)
        goto fail;
    bridge->next = pool->bridges;
    pool->bridges = bridge;
    pool->last = bridge;
    bridge->listed = true;
    Py_DECREF(bridge); /* the loop's reader holds it */
    return bridge;
fail:
    Py_DECREF(bridge);
    return NULL;
}

/* What asyncio notes this thread's running loop in, borrowed, or NULL: up to 3.13 an
 * object in the thread's dict, a new one each time the running loop is set. */
static PyObject *running_mark(struct core_state *st)
{
    PyObject *dict = PyThreadState_GetDict();

    return dict == NULL ? NULL : PyDict_GetItemWithError(dict, st->native.str_running_mark);
}

/* A drain runs under its loop, so what notes the loop is the same object until the
 * drain ends, in this thread and no other.  Asking asyncio is a getpid() each time;
 * it is asked again where another loop runs inside a task, and in a forked child. */
static struct core_bridge *draining_here(struct core_pool *pool)
{
    struct core_bridge *bridge = pool->last;

    if (bridge == NULL || bridge->mark == NULL || bridge->mark != running_mark(pool->st))
        return NULL;
    return pool->rt != NULL && !rt_pool_forked(pool->rt) && bridge->reading ? bridge : NULL;
}

struct core_bridge *core_bridge_of(struct core_pool *pool, PyObject **out)
{
    struct core_bridge *bridge = draining_here(pool);
    PyObject *loop;

    *out = NULL;
    if (bridge != NULL) {
        *out = core_weak_borrowed(bridge->loop_ref);
        return bridge;
    }
    loop = PyObject_CallNoArgs(pool->st->native.get_running_loop);
    if (loop == NULL)
        return NULL;
    Py_DECREF(loop); /* it runs in this thread, so it stays */
    if (loop == Py_None)
        return NULL;
    *out = loop;
    if (core_pool_check_fork(pool) < 0)
        return NULL;
    bridge = find(pool, loop);
    if (bridge != NULL && bridge->draining > 0)
        Py_XSETREF(bridge->mark, Py_XNewRef(running_mark(pool->st)));
    if (bridge != NULL && bridge->reading)
        return bridge;
    if (bridge != NULL)
        return start_reading(bridge, loop) < 0 ? NULL : bridge;
    return make(pool, loop);
}

/* ---- the type ----------------------------------------------------------------------- */

static PyObject *stop_reading(PyObject *op, PyObject *unused)
{
    struct core_bridge *bridge = (struct core_bridge *)op;
    PyObject *loop = core_weak_borrowed(bridge->loop_ref), *fd, *done = NULL;

    (void)unused;
    if (!bridge->reading || loop == NULL || bridge->outstanding > 0)
        Py_RETURN_NONE;
    Py_INCREF(loop);
    fd = PyLong_FromLong(bridge->mailbox->fd);
    if (fd != NULL)
        done = PyObject_CallMethodOneArg(loop, bridge->st->native.str_remove_reader, fd);
    Py_XDECREF(fd);
    Py_DECREF(loop);
    bridge->reading = false;
    return done;
}

/* The pool was closed and its time is over: fail the calls that are out, which a worker
 * is still in.  Run by the loop. */
static PyObject *give_up(PyObject *op, PyObject *unused)
{
    struct core_bridge *bridge = (struct core_bridge *)op;
    PyObject *loop = core_weak_borrowed(bridge->loop_ref);
    struct core_wake_ctx w;
    int rc = 0;

    (void)unused;
    if (loop == NULL || !bridge->listed)
        Py_RETURN_NONE;
    Py_INCREF(loop);
    Py_INCREF(bridge);
    if (core_wake_begin(bridge->st, loop, &w) < 0) {
        rc = -1;
    } else {
        rc = core_call_give_up(&w, bridge);
        core_wake_end(&w);
    }
    Py_DECREF(bridge);
    Py_DECREF(loop);
    if (rc < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Have the bridge's loop call one of its methods. */
static int call_in_loop(struct core_bridge *bridge, const char *method)
{
    PyObject *loop = core_weak_borrowed(bridge->loop_ref), *call, *done = NULL;

    if (loop == NULL || core_bridge_is_homeless(bridge))
        return 0;
    Py_INCREF(loop);
    call = PyObject_GetAttrString((PyObject *)bridge, method);
    if (call != NULL)
        done = PyObject_CallMethodOneArg(loop, bridge->st->native.str_call_soon_threadsafe, call);
    Py_XDECREF(call);
    Py_DECREF(loop);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

int core_bridge_detach(struct core_bridge *bridge)
{
    return call_in_loop(bridge, "_stop_reading");
}

int core_bridge_give_up(struct core_bridge *bridge)
{
    return call_in_loop(bridge, "_give_up");
}

static int bridge_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_bridge *bridge = (struct core_bridge *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(bridge->pool);
    Py_VISIT(bridge->loop_ref);
    return 0;
}

static void bridge_dealloc(PyObject *op)
{
    struct core_bridge *bridge = (struct core_bridge *)op, **link;
    struct core_state *st = bridge->st;
    PyTypeObject *type = Py_TYPE(op);
    struct core_job *job;

    PyObject_GC_UnTrack(op);
    if (bridge->listed) {
        for (link = &bridge->pool->bridges; *link != NULL; link = &(*link)->next) {
            if (*link == bridge) {
                *link = bridge->next;
                break;
            }
        }
        if (bridge->pool->last == bridge)
            bridge->pool->last = NULL;
        bridge->pool->past_rings += rt_read(&bridge->mailbox->rings);
    }
    while (bridge->parked.head != NULL) {
        /* Only cancelled ones: the future of any other holds the loop's. */
        job = core_job_of(rt_joblist_pop(&bridge->parked));
        Py_CLEAR(job->rds.base.owner);
        core_bridge_recycle(bridge, job);
    }
    while ((job = bridge->free) != NULL) {
        bridge->free = job->rds.base.next != NULL ? core_job_of(job->rds.base.next) : NULL;
        free(job);
    }
    core_dues_fini(&bridge->dues);
    rt_mailbox_release(bridge->mailbox);
    Py_CLEAR(bridge->loop_ref);
    Py_CLEAR(bridge->pool);
    PyObject_GC_Del(op);
    Py_DECREF(type);
    core_state_drop(st);
}

static PyMethodDef bridge_methods[] = {
    { "_drain", drain, METH_NOARGS, "Settle the futures of every job that came home." },
    { "_give_up", give_up, METH_NOARGS, "Fail the calls that are out: the pool was closed." },
    { "_stop_reading", stop_reading, METH_NOARGS, "Take the mailbox out of the loop." },
    { NULL, NULL, 0, NULL },
};

static PyType_Slot bridge_slots[] = {
    { Py_tp_dealloc, bridge_dealloc },
    { Py_tp_traverse, bridge_traverse },
    { Py_tp_methods, bridge_methods },
    { 0, NULL },
};

PyType_Spec core_bridge_spec = {
    .name = "offloop._core._Bridge",
    .basicsize = sizeof(struct core_bridge),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = bridge_slots,
};
