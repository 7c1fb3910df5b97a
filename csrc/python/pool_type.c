#include "pool_type.h"

#include <structmember.h>

#include "bridge.h"
#include "call.h"
#include "errors.h"
#include "executor.h"
#include "host.h"

/* What a call may need: as much as a thread of Python's own has. */
#define STACK_SIZE ((size_t)8 << 20)

/* Seconds. */
#define BUSY_POLL 100e-6
#define BUSY_POLL_MAX 0.01

static int ensure_open(struct core_pool *pool)
{
    if (pool->rt != NULL)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "Pool.__init__() was not called");
    return -1;
}

static int make_native(struct core_pool *pool, struct rt_pool **out)
{
    int err = rt_pool_new(pool->workers, pool->queue, out);

    if (err != RT_OK)
        return err;
    rt_pool_set_host(*out, &pool->st->native.host->rt, STACK_SIZE);
    rt_pool_set_busy_poll(*out, pool->busy_poll);
    return RT_OK;
}

int core_pool_check_fork(struct core_pool *pool)
{
    struct core_bridge *bridge;
    struct rt_pool *fresh = NULL;
    int err;

    if (ensure_open(pool) < 0)
        return -1;
    if (!rt_pool_forked(pool->rt))
        return 0;
    err = make_native(pool, &fresh);
    if (err != RT_OK)
        return core_raise_err(pool->st, err, "A pool for the forked process");
    /* What was in flight stays the parent's, and so do its loops. */
    while ((bridge = pool->bridges) != NULL) {
        pool->bridges = bridge->next;
        bridge->next = NULL;
        bridge->listed = false;
    }
    pool->last = NULL;
    rt_pool_abandon(pool->rt);
    pool->rt = fresh;
    pool->generation++;
    return 0;
}

/* ---- making and closing ------------------------------------------------------------ */

/* An int in [low, high], named for the message; -1 with an exception set. */
static long whole_number(PyObject *value, const char *name, long low, long high)
{
    long number;

    if (PyBool_Check(value) || !PyLong_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be an int, not %.100s", name,
                     Py_TYPE(value)->tp_name);
        return -1;
    }
    number = PyLong_AsLong(value);
    if (number == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        number = low - 1;
    }
    if (number < low || number > high) {
        PyErr_Format(PyExc_ValueError, "%s must be between %ld and %ld, not %R", name, low, high,
                     value);
        return -1;
    }
    return number;
}

static int pool_init(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "workers",     "queue",    "thread_name_prefix",
                             "initializer", "initargs", "busy_poll", NULL };
    struct core_pool *pool = (struct core_pool *)op;
    PyObject *workers_arg = NULL, *queue_arg = NULL, *prefix = Py_None, *initializer = Py_None;
    PyObject *initargs = NULL;
    long workers = 4, queue = 65536;
    double busy_poll = BUSY_POLL;
    int err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O$OOOO!d:Pool", names, &workers_arg,
                                     &queue_arg, &prefix, &initializer, &PyTuple_Type, &initargs,
                                     &busy_poll))
        return -1;
    if (pool->rt != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Pool.__init__() was called already");
        return -1;
    }
    if (workers_arg != NULL) {
        workers = whole_number(workers_arg, "workers", 1, RT_MAX_WORKERS);
        if (workers < 0)
            return -1;
    }
    if (queue_arg != NULL) {
        queue = whole_number(queue_arg, "queue", 1, 1 << 24);
        if (queue < 0)
            return -1;
    }
    if (prefix != Py_None && !PyUnicode_Check(prefix)) {
        PyErr_SetString(PyExc_TypeError, "thread_name_prefix must be a str");
        return -1;
    }
    if (initializer != Py_None && !PyCallable_Check(initializer)) {
        PyErr_SetString(PyExc_TypeError, "initializer must be a callable");
        return -1;
    }
    if (!(busy_poll >= 0 && busy_poll <= BUSY_POLL_MAX)) { /* a NaN neither */
        PyErr_SetString(PyExc_ValueError, "busy_poll must be between 0 and 0.01 seconds");
        return -1;
    }
    pool->busy_poll = (uint64_t)(busy_poll * 1e9);
    pool->workers = (unsigned)workers;
    pool->queue = (uint32_t)queue;
    err = make_native(pool, &pool->rt);
    if (err != RT_OK)
        return core_raise_err(pool->st, err, "A pool");
    pool->prefix = prefix != Py_None && PyUnicode_GET_LENGTH(prefix) > 0 ? Py_NewRef(prefix) : NULL;
    pool->initializer = initializer != Py_None ? Py_NewRef(initializer) : NULL;
    pool->initargs = Py_XNewRef(initargs);
    return 0;
}

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct core_state *st = core_state_of_type(type);
    struct core_pool *pool;

    (void)args;
    (void)kwargs;
    if (st == NULL)
        return NULL;
    pool = (struct core_pool *)type->tp_alloc(type, 0);
    if (pool != NULL)
        pool->st = core_state_hold(st);
    return (PyObject *)pool;
}

static int finish_none(struct core_wake_ctx *w, struct core_bridge *bridge, struct core_job *job,
                       PyObject *fut)
{
    int rc;

    core_bridge_recycle(bridge, job);
    rc = core_future_settle_result(w, fut, Py_None);
    Py_DECREF(fut);
    return rc;
}

static int send_close(struct core_job *job)
{
    struct core_pool *pool = (struct core_pool *)job->keep;

    return rt_pool_close(pool->rt, job->rds.base.deadline, &job->rds.base);
}

static uint64_t deadline_in(double seconds)
{
    if (!(seconds < 1e9))
        return RT_NEVER;
    return rt_after(rt_now(), seconds <= 0 ? 0 : (uint64_t)(seconds * 1e9));
}

/* _close(timeout): a future that is done when the last worker has ended, or None
 * when somebody else waits for that already. */
static PyObject *pool_close(PyObject *op, PyObject *arg)
{
    struct core_pool *pool = (struct core_pool *)op;
    struct core_bridge *bridge;
    double seconds = PyFloat_AsDouble(arg);
    PyObject *loop = NULL, *fut = NULL;
    struct core_job *job;
    int err;

    if (seconds == -1.0 && PyErr_Occurred())
        return NULL;
    if (core_pool_check_fork(pool) < 0)
        return NULL;
    bridge = core_bridge_of(pool, &loop);
    if (bridge == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "no running event loop");
        return NULL;
    }
    fut = core_future_new(pool->st, loop, bridge->debug);
    job = fut != NULL ? core_bridge_job(bridge, deadline_in(seconds)) : NULL;
    if (job == NULL) {
        Py_XDECREF(fut);
        return NULL;
    }
    job->finish = finish_none;
    job->send = send_close;
    job->waits = true; /* for the others, of whose room it takes none */
    job->keep = Py_NewRef(pool);
    err = core_bridge_send_now(bridge, job, fut);
    if (err == RT_OK)
        return fut;
    Py_DECREF(fut);
    if (err == RT_ECLOSED)
        Py_RETURN_NONE;
    core_raise_err(pool->st, err, "Closing the pool");
    return NULL;
}

/* ---- calls ------------------------------------------------------------------------------ */

static struct core_way way_of(PyObject *op)
{
    return (struct core_way){ .self = op, .pool = (struct core_pool *)op, .timeout = RT_NEVER };
}

static PyObject *pool_call(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames)
{
    const struct core_way way = way_of(op);

    return ensure_open(way.pool) < 0 ? NULL : core_call_start(&way, args, nargs, kwnames);
}

static PyObject *pool_call_all(PyObject *op, PyObject *calls)
{
    const struct core_way way = way_of(op);

    return ensure_open(way.pool) < 0 ? NULL : core_call_start_all(&way, calls);
}

static PyObject *pool_submit(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    const struct core_way way = way_of(op);

    return core_executor_submit(&way, args, nargs, kwnames);
}

/* _detach(): take the pool's mailboxes out of their loops. */
static PyObject *pool_detach(PyObject *op, PyObject *unused)
{
    struct core_pool *pool = (struct core_pool *)op;
    struct core_bridge *bridge;

    (void)unused;
    /* Every job is home by now: nothing more comes for loops that are closed. */
    core_bridge_reap(pool);
    bridge = pool->bridges;
    while (bridge != NULL) {
        struct core_bridge *next;

        Py_INCREF(bridge);
        if (core_bridge_detach(bridge) < 0)
            PyErr_Clear(); /* the loop closed meanwhile */
        next = bridge->next;
        Py_DECREF(bridge);
        bridge = next;
    }
    Py_RETURN_NONE;
}

/* _end(timeout, wait): without a loop. */
static PyObject *pool_end(PyObject *op, PyObject *args)
{
    struct core_pool *pool = (struct core_pool *)op;
    bool ended = false;
    double seconds;
    int wait;

    if (!PyArg_ParseTuple(args, "dp:_end", &seconds, &wait) || core_pool_check_fork(pool) < 0)
        return NULL;
    if (wait && rt_worker_current() != NULL && rt_worker_current()->pool == pool->rt) {
        PyErr_SetString(PyExc_RuntimeError, "a call cannot wait for the end of its own pool");
        return NULL;
    }
    rt_pool_close(pool->rt, deadline_in(seconds), NULL);
    while (wait && !ended) {
        Py_BEGIN_ALLOW_THREADS
        ended = rt_pool_wait(pool->rt, rt_after(rt_now(), 20 * RT_MS));
        Py_END_ALLOW_THREADS
        if (!ended && PyErr_CheckSignals() < 0)
            return NULL;
    }
    core_bridge_reap(pool);
    return PyBool_FromLong(ended);
}

/* _give_up(): fail the calls that workers are still in. */
static PyObject *pool_give_up(PyObject *op, PyObject *unused)
{
    struct core_pool *pool = (struct core_pool *)op;
    struct core_bridge *bridge = pool->bridges;

    (void)unused;
    rt_pool_stop_waiting(pool->rt);
    while (bridge != NULL) {
        struct core_bridge *next;

        Py_INCREF(bridge);
        if (core_bridge_give_up(bridge) < 0)
            PyErr_Clear(); /* the loop closed meanwhile */
        next = bridge->next;
        Py_DECREF(bridge);
        bridge = next;
    }
    Py_RETURN_NONE;
}

/* ---- a job for tests -------------------------------------------------------------------- */

static void run_echo(struct rt_job *job, struct rt_worker *worker)
{
    /* The pause is kept where a command's bytes would be. */
    uint64_t pause;
    struct timespec ts;

    (void)worker;
    memcpy(&pause, rds_job_of(job)->inline_bytes, sizeof pause);
    ts.tv_sec = (time_t)(pause / RT_SEC);
    ts.tv_nsec = (long)(pause % RT_SEC);
    if (pause > 0)
        nanosleep(&ts, NULL);
    rt_pool_complete(job, RT_OK);
}

static int send_echo(struct core_job *job)
{
    PyObject *pool = PyTuple_GET_ITEM(job->keep, 0);

    return rt_pool_submit(((struct core_pool *)pool)->rt, &job->rds.base);
}

static int finish_echo(struct core_wake_ctx *w, struct core_bridge *bridge, struct core_job *job,
                       PyObject *fut)
{
    PyObject *value = Py_NewRef(PyTuple_GET_ITEM(job->keep, 1)), *exception = NULL;
    int rc, err = job->rds.base.err;

    core_bridge_recycle(bridge, job);
    if (err == RT_OK) {
        rc = core_future_settle_result(w, fut, value);
    } else {
        core_raise_err(bridge->st, err, "The job did not run");
        exception = core_take_exception();
        rc = core_future_settle_exception(w, fut, exception);
    }
    Py_XDECREF(exception);
    Py_DECREF(value);
    Py_DECREF(fut);
    return rc;
}

/* _echo(value, pause=0.0): value comes back from a worker after a pause there. */
static PyObject *pool_echo(PyObject *op, PyObject *args)
{
    struct core_pool *pool = (struct core_pool *)op;
    struct core_bridge *bridge;
    PyObject *value, *loop = NULL, *fut;
    struct core_job *job;
    double seconds = 0;
    uint64_t pause;

    if (!PyArg_ParseTuple(args, "O|d:_echo", &value, &seconds) || core_pool_check_fork(pool) < 0)
        return NULL;
    bridge = core_bridge_of(pool, &loop);
    if (bridge == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "no running event loop");
        return NULL;
    }
    fut = core_future_new(pool->st, loop, bridge->debug);
    job = fut != NULL ? core_bridge_job(bridge, RT_NEVER) : NULL;
    if (job == NULL)
        goto fail;
    job->keep = PyTuple_Pack(2, pool, value);
    if (job->keep == NULL) {
        core_bridge_recycle(bridge, job);
        goto fail;
    }
    pause = seconds > 0 ? (uint64_t)(seconds * 1e9) : 0;
    memcpy(job->rds.inline_bytes, &pause, sizeof pause);
    job->rds.base.run = run_echo;
    job->finish = finish_echo;
    job->send = send_echo;
    if (core_bridge_send(bridge, job, fut) < 0)
        goto fail;
    return fut;
fail:
    Py_XDECREF(fut);
    return NULL;
}

/* ---- measuring ------------------------------------------------------------------------ */

static int put(PyObject *dict, const char *key, uint64_t value)
{
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    int rc = number == NULL ? -1 : PyDict_SetItemString(dict, key, number);

    Py_XDECREF(number);
    return rc;
}

static PyObject *worker_stats(const struct rt_worker *worker)
{
    const struct rt_worker_stats *stats = &worker->stats;
    PyObject *dict = PyDict_New(), *name = PyUnicode_FromFormat("offloop-w%u", worker->index);

    if (dict == NULL || name == NULL || PyDict_SetItemString(dict, "name", name) < 0 ||
        put(dict, "jobs", rt_read(&stats->jobs)) < 0 ||
        put(dict, "commands", rt_read(&stats->commands)) < 0 ||
        put(dict, "batches", rt_read(&stats->batches)) < 0 ||
        put(dict, "wakeups", rt_read(&stats->wakeups)) < 0 ||
        put(dict, "busy_polls", rt_read(&stats->polls)) < 0 ||
        put(dict, "busy_poll_hits", rt_read(&stats->poll_hits)) < 0)
        Py_CLEAR(dict);
    Py_XDECREF(name);
    return dict;
}

static PyObject *pool_stats(PyObject *op, PyObject *unused)
{
    struct core_pool *pool = (struct core_pool *)op;
    uint64_t jobs = 0, commands = 0, wakeups, rings, depth, high, loops = 0, waiting = 0;
    uint64_t polls = pool->past_busy_polls, hits = pool->past_busy_hits;
    uint64_t by_loops;
    PyObject *dict = NULL, *each = NULL, *one = NULL, *result = NULL;
    struct core_bridge *bridge;
    unsigned i;

    (void)unused;
    if (core_pool_check_fork(pool) < 0)
        return NULL;
    core_bridge_reap(pool);
    dict = PyDict_New();
    each = PyList_New(0);
    if (dict == NULL || each == NULL)
        goto done;
    wakeups = rt_read(&pool->rt->poller.bells);
    rings = pool->past_rings;
    by_loops = rt_read(&pool->rt->loop_commands);
    depth = atomic_load(&pool->rt->depth);
    high = rt_read(&pool->rt->depth_high);
    for (i = 0; i < pool->workers; i++) {
        const struct rt_worker_stats *stats = &pool->rt->workers[i].stats;

        jobs += rt_read(&stats->jobs);
        commands += rt_read(&stats->commands);
        wakeups += rt_read(&stats->wakeups);
        one = worker_stats(&pool->rt->workers[i]);
        if (one == NULL || PyList_Append(each, one) < 0)
            goto done;
        Py_CLEAR(one);
    }
    for (bridge = pool->bridges; bridge != NULL; bridge = bridge->next) {
        loops++;
        rings += rt_read(&bridge->mailbox->rings);
        polls += bridge->busy_poll.tries;
        hits += bridge->busy_poll.hits;
        depth += core_bridge_under_way(bridge);
        waiting += core_bridge_unsent(bridge);
        if (bridge->high_water > high)
            high = bridge->high_water;
    }
    if (put(dict, "workers", pool->workers) < 0 || put(dict, "jobs", jobs) < 0 ||
        put(dict, "commands", commands + by_loops) < 0 ||
        put(dict, "loop_commands", by_loops) < 0 || put(dict, "wakeups", wakeups) < 0 ||
        put(dict, "eventfd_writes", rings) < 0 || put(dict, "queue_limit", pool->queue) < 0 ||
        put(dict, "queue_depth", depth) < 0 || put(dict, "queue_high_water", high) < 0 ||
        put(dict, "busy_polls", polls) < 0 || put(dict, "busy_poll_hits", hits) < 0 ||
        put(dict, "waiting", waiting) < 0 || put(dict, "loops", loops) < 0 ||
        put(dict, "sources", atomic_load(&pool->rt->poller.count)) < 0 ||
        PyDict_SetItemString(dict, "started",
                             atomic_load(&pool->rt->live) > 0 ? Py_True : Py_False) < 0 ||
        PyDict_SetItemString(dict, "per_worker", each) < 0)
        goto done;
    result = Py_NewRef(dict);
done:
    Py_XDECREF(one);
    Py_XDECREF(each);
    Py_XDECREF(dict);
    return result;
}

static PyObject *get_workers(PyObject *op, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(((struct core_pool *)op)->workers);
}

static PyObject *get_queue(PyObject *op, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(((struct core_pool *)op)->queue);
}

static PyObject *get_broken(PyObject *op, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((struct core_pool *)op)->broken);
}

static PyObject *get_busy(PyObject *op, void *unused)
{
    struct core_pool *pool = (struct core_pool *)op;

    (void)unused;
    return PyLong_FromUnsignedLong(pool->rt == NULL ? 0 : atomic_load(&pool->rt->busy));
}

static PyObject *get_closed(PyObject *op, void *unused)
{
    struct core_pool *pool = (struct core_pool *)op;

    (void)unused;
    return PyBool_FromLong(pool->rt == NULL || rt_pool_state(pool->rt) >= RT_POOL_DRAINING);
}

static PyObject *get_ended(PyObject *op, void *unused)
{
    struct core_pool *pool = (struct core_pool *)op;

    (void)unused;
    return PyBool_FromLong(pool->rt != NULL && rt_pool_state(pool->rt) == RT_POOL_STOPPED &&
                           atomic_load(&pool->rt->live) == 0);
}

/* ---- the type ----------------------------------------------------------------------- */

static int pool_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((struct core_pool *)op)->initializer);
    Py_VISIT(((struct core_pool *)op)->initargs);
    Py_VISIT(((struct core_pool *)op)->dict);
    return 0;
}

static int pool_clear(PyObject *op)
{
    Py_CLEAR(((struct core_pool *)op)->initializer);
    Py_CLEAR(((struct core_pool *)op)->initargs);
    Py_CLEAR(((struct core_pool *)op)->dict);
    return 0;
}

static void pool_dealloc(PyObject *op)
{
    struct core_pool *pool = (struct core_pool *)op;
    struct core_state *st = pool->st;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    if (pool->weakrefs != NULL)
        PyObject_ClearWeakRefs(op);
    (void)pool_clear(op);
    Py_CLEAR(pool->prefix);
    rt_pool_release(pool->rt);
    pool->rt = NULL;
    type->tp_free(op);
    Py_DECREF(type);
    core_state_drop(st);
}

static PyMethodDef pool_methods[] = {
    { "stats", pool_stats, METH_NOARGS,
      "stats($self, /)\n--\n\n"
      "What the pool has done so far, as a dict of counters.\n\n"
      "Cheap, and always counted.  May be called from any thread." },
    { "call", (PyCFunction)(void (*)(void))pool_call, METH_FASTCALL | METH_KEYWORDS,
      "call($self, fn, /, *args, **kwargs)\n--\n\n"
      "Call fn(*args, **kwargs) on a worker; an awaitable of what it returns." },
    { "submit", (PyCFunction)(void (*)(void))pool_submit, METH_FASTCALL | METH_KEYWORDS,
      "submit($self, fn, /, *args, **kwargs)\n--\n\n"
      "The same as a concurrent.futures.Future." },
    { "_call_all", pool_call_all, METH_O,
      "_call_all($self, calls, /)\n--\n\nThe futures of many calls, each (fn, args)." },
    { "_close", pool_close, METH_O,
      "_close($self, timeout, /)\n--\n\n"
      "Close; a future that is done when the workers have ended, or None if another waits." },
    { "_end", pool_end, METH_VARARGS,
      "_end($self, timeout, wait, /)\n--\n\nClose without an event loop." },
    { "_give_up", pool_give_up, METH_NOARGS,
      "_give_up($self, /)\n--\n\nFail the calls that workers are still in." },
    { "_detach", pool_detach, METH_NOARGS,
      "_detach($self, /)\n--\n\nTake the pool's mailboxes out of their loops." },
    { "_echo", pool_echo, METH_VARARGS,
      "_echo($self, value, pause=0.0, /)\n--\n\n"
      "A future of value, by way of a worker that pauses for so many seconds." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef pool_getset[] = {
    { "workers", get_workers, NULL, "The number of worker threads.", NULL },
    { "queue", get_queue, NULL,
      "How many calls one event loop may have under way; further ones wait.", NULL },
    { "_busy", get_busy, NULL, "How many workers run something.", NULL },
    { "_broken", get_broken, NULL, "Whether an initializer failed.", NULL },
    { "closed", get_closed, NULL, "Whether new calls are refused.", NULL },
    { "_ended", get_ended, NULL, "Whether every worker has ended after a close.", NULL },
    { "__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyMemberDef pool_members[] = {
    { "__weaklistoffset__", T_PYSSIZET, offsetof(struct core_pool, weakrefs), READONLY, NULL },
    { "__dictoffset__", T_PYSSIZET, offsetof(struct core_pool, dict), READONLY, NULL },
    { NULL, 0, 0, 0, NULL },
};

static PyType_Slot pool_slots[] = {
    { Py_tp_doc, "Pool(workers=4, *, queue=65536, thread_name_prefix='', initializer=None, "
                 "initargs=(), busy_poll=0.0001)\n--\n\n"
                 "A fixed number of native worker threads, started at first use." },
    { Py_tp_new, pool_new },
    { Py_tp_init, pool_init },
    { Py_tp_dealloc, pool_dealloc },
    { Py_tp_traverse, pool_traverse },
    { Py_tp_clear, pool_clear },
    { Py_tp_methods, pool_methods },
    { Py_tp_getset, pool_getset },
    { Py_tp_members, pool_members },
    { 0, NULL },
};

PyType_Spec core_pool_spec = {
    .name = "offloop._core.Pool",
    .basicsize = sizeof(struct core_pool),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = pool_slots,
};
