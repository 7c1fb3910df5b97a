/* Bridges and their loops: found, made, given up, and collected. */
#include "bridge.h"

#include "call.h"
#include "errors.h"
#include "host.h"
#include "pool_type.h"

/* ---- loops that are gone ------------------------------------------------------------ */

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
        if (bridge->outstanding + core_bridge_unsent(bridge) > 0)
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

/* A loop was closed or collected: what came home for it, and later, is dropped. */
static PyObject *loop_ended(PyObject *pool_ref, PyObject *unused)
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

static PyMethodDef loop_ended_def = { "_loop_ended", loop_ended, METH_O, NULL };

/* A weak reference to what ends with the loop.  Its callback knows the pool by a weak
 * reference: the bridge keeps the pool. */
static PyObject *make_end_ref(struct core_pool *pool, PyObject *thing)
{
    PyObject *pool_ref = PyWeakref_NewRef((PyObject *)pool, NULL), *callback = NULL, *ref = NULL;

    if (pool_ref != NULL)
        callback = PyCFunction_New(&loop_ended_def, pool_ref);
    if (callback != NULL)
        ref = PyWeakref_NewRef(thing, callback);
    Py_XDECREF(callback);
    Py_XDECREF(pool_ref);
    return ref;
}

/* The loop alone keeps the callback, and lets go of it when it is closed.  That is
 * watched, for what is home by then and was never looked at: nothing else would come
 * to look, as the job's future keeps the loop from being collected. */
static int start_reading(struct core_bridge *bridge, PyObject *loop)
{
    PyObject *fd = PyLong_FromLong(bridge->mailbox->fd), *call = NULL, *done = NULL;
    PyObject *debug = NULL;

    if (fd != NULL)
        call = PyObject_GetAttrString((PyObject *)bridge, "_drain");
    if (call != NULL)
        Py_XSETREF(bridge->reader_ref, make_end_ref(bridge->pool, call));
    if (call != NULL && bridge->reader_ref != NULL)
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
    rt_joblist_init(&bridge->unqueued);
    bridge->loop_ref = make_end_ref(pool, loop);
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
    core_busy_poll_init(&bridge->busy_poll, loop, pool->rt->busy_poll);
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

/* The same once more, where an exception has stopped it. */
static void come_back(struct core_bridge *bridge)
{
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    if (core_bridge_give_up(bridge) < 0)
        PyErr_Clear(); /* the loop is closed */
    PyErr_Restore(type, value, traceback);
}

/* The pool was closed and its time is over: fail the calls that are out, which a worker
 * is still in, and what waits for room.  Run by the loop. */
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
        if (rc == 0)
            rc = core_bridge_refuse_unsent(&w, bridge);
        core_wake_end(&w);
    }
    if (rc < 0)
        come_back(bridge);
    Py_DECREF(bridge);
    Py_DECREF(loop);
    if (rc < 0)
        return NULL;
    Py_RETURN_NONE;
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
    Py_VISIT(bridge->busy_poll.ready);
    Py_VISIT(bridge->reader_ref);
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
        bridge->pool->past_busy_polls += bridge->busy_poll.tries;
        bridge->pool->past_busy_hits += bridge->busy_poll.hits;
    }
    /* Only cancelled ones: the future of any other holds the loop's. */
    core_bridge_drop_unsent(bridge);
    while ((job = bridge->free) != NULL) {
        bridge->free = job->rds.base.next != NULL ? core_job_of(job->rds.base.next) : NULL;
        free(job);
    }
    core_dues_fini(&bridge->dues);
    rt_mailbox_release(bridge->mailbox);
    Py_CLEAR(bridge->busy_poll.ready);
    Py_CLEAR(bridge->loop_ref);
    Py_CLEAR(bridge->reader_ref);
    Py_CLEAR(bridge->pool);
    PyObject_GC_Del(op);
    Py_DECREF(type);
    core_state_drop(st);
}

static PyMethodDef bridge_methods[] = {
    { "_drain", core_bridge_drain, METH_NOARGS, "Settle the futures of every job that came home." },
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
