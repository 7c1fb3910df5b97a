#include "lease_type.h"

#include <arpa/inet.h>
#include <sys/socket.h>

#include "../redis/rds_lease.h"
#include "errors.h"
#include "reply.h"

static struct core_lease *lease_of(PyObject *op)
{
    return (struct core_lease *)op;
}

/* Whether it is open, and this process's. */
bool core_lease_usable(const struct core_lease *lease)
{
    return lease->rds != NULL && lease->generation == lease->channel->pool->generation &&
           !rt_pool_forked(lease->channel->pool->rt);
}

static PyObject *raise_closed(const struct core_lease *lease)
{
    PyErr_SetString(lease->st->native.connection_error, "Connection closed by server.");
    return NULL;
}

static PyObject *raise_lost(const struct core_lease *lease, int err, const char *why)
{
    const struct core_native_state *native = &lease->st->native;

    PyErr_SetString(err == RT_EPROTOCOL ? native->invalid_response : native->connection_error,
                    why);
    return NULL;
}

/* ---- making one -------------------------------------------------------------------------- */

static PyObject *make(struct core_channel *channel, struct rds_lease *rds)
{
    struct core_state *st = channel->st;
    struct core_lease *lease = PyObject_GC_New(struct core_lease, st->native.lease_type);

    if (lease == NULL) {
        rds_held_release(rds);
        return NULL;
    }
    lease->st = core_state_hold(st);
    lease->channel = (struct core_channel *)Py_NewRef(channel);
    lease->rds = rds;
    lease->generation = channel->generation;
    lease->reading = lease->writing = NULL;
    lease->streak = 0;
    PyObject_GC_Track(lease);
    return (PyObject *)lease;
}

static int settle(struct core_wake_ctx *w, PyObject *fut, PyObject *value)
{
    PyObject *exception;
    int rc;

    if (value != NULL) {
        rc = core_future_settle_result(w, fut, value);
        Py_DECREF(value);
    } else {
        exception = core_take_exception();
        rc = core_future_settle_exception(w, fut, exception);
        Py_DECREF(exception);
    }
    Py_DECREF(fut);
    return rc;
}

static int finish_hold(struct core_wake_ctx *w, struct core_bridge *bridge, struct core_job *job,
                       PyObject *fut)
{
    struct core_channel *channel =
        (struct core_channel *)Py_NewRef(((struct core_future *)fut)->owner);
    PyObject *value = NULL, *error;

    if (job->rds.base.err == RT_OK) {
        value = make(channel, rds_held_claim(&job->rds));
    } else {
        error = core_reply_failure(channel, job->rds.base.err, &job->rds.reply);
        if (error != NULL)
            PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_XDECREF(error);
    }
    core_bridge_recycle(bridge, job);
    Py_DECREF(channel);
    return settle(w, fut, value);
}

static int send_hold(struct core_job *job)
{
    PyObject *fut = job->rds.base.owner;
    struct core_channel *channel = (struct core_channel *)((struct core_future *)fut)->owner;

    return rds_lease_submit(channel->rds, &job->rds);
}

/* A job and its future in the running loop.  NULL with an exception set. */
static struct core_job *prepare(struct core_channel *channel, PyObject *owner, uint64_t deadline,
                                PyObject **out)
{
    PyObject *loop = NULL, *fut;
    struct core_bridge *bridge = core_bridge_of(channel->pool, &loop);
    struct core_job *job;

    if (bridge == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "no running event loop");
        return NULL;
    }
    fut = core_future_new(channel->st, loop, bridge->debug);
    if (fut == NULL)
        return NULL;
    job = core_bridge_job(bridge, deadline);
    if (job == NULL) {
        Py_DECREF(fut);
        return NULL;
    }
    ((struct core_future *)fut)->owner = Py_NewRef(owner);
    job->waits = true;
    *out = fut;
    return job;
}

PyObject *core_lease_hold(struct core_channel *channel)
{
    struct core_job *job;
    PyObject *fut;

    if (core_channel_check_fork(channel) < 0)
        return NULL;
    job = prepare(channel, (PyObject *)channel, RT_NEVER, &fut);
    if (job == NULL)
        return NULL;
    job->finish = finish_hold;
    job->send = send_hold;
    job->rds.holds = true;
    if (core_bridge_send(job->bridge, job, fut) < 0)
        Py_CLEAR(fut);
    return fut;
}

/* ---- waiting ------------------------------------------------------------------------------ */

bool core_lease_withdraw(PyObject *op, struct core_job *job)
{
    struct core_lease *lease = lease_of(op);

    if (lease->reading == job)
        lease->reading = NULL;
    if (lease->writing == job)
        lease->writing = NULL;
    return core_lease_usable(lease) && rds_held_withdraw(lease->rds, &job->rds.base);
}

/* Seconds, or None, as a deadline.  0, or -1 with an exception set. */
static int read_deadline(PyObject *timeout, uint64_t *out)
{
    double seconds;

    *out = RT_NEVER;
    if (timeout == Py_None)
        return 0;
    seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    if (seconds < 1e9)
        *out = rt_after(rt_now(), seconds > 0 ? (uint64_t)(seconds * 1e9) : 0);
    return 0;
}

/* Whether somebody waits already.  Who waits in a loop that is closed does not count. */
static int is_taken(struct core_job **slot)
{
    PyObject *fut, *closed;
    int truth;

    if (*slot == NULL)
        return 0;
    fut = (*slot)->rds.base.owner;
    closed = PyObject_CallMethod(((struct core_future *)fut)->loop, "is_closed", NULL);
    truth = closed == NULL ? -1 : PyObject_IsTrue(closed);
    Py_XDECREF(closed);
    if (truth <= 0)
        return truth < 0 ? -1 : 1;
    core_bridge_forget(*slot);
    return 0;
}

static int finish_wait(struct core_wake_ctx *w, struct core_bridge *bridge, struct core_job *job,
                       PyObject *fut)
{
    struct core_lease *lease = lease_of(((struct core_future *)fut)->owner);
    bool late = job->rds.base.err == RT_ETIMEOUT;

    lease->reading = NULL;
    if (core_lease_usable(lease) && !late && !rds_held_ready(lease->rds)) {
        lease->reading = job; /* for nothing: another has taken it */
        if (core_bridge_send_now(bridge, job, fut) == RT_OK) {
            Py_DECREF(fut); /* the job has its own again */
            return 0;
        }
    } else {
        core_bridge_recycle(bridge, job);
    }
    late = late && !(core_lease_usable(lease) && rds_held_ready(lease->rds));
    return settle(w, fut, Py_NewRef(late ? Py_False : Py_True));
}

static int send_wait(struct core_job *job)
{
    PyObject *fut = job->rds.base.owner;

    rds_held_wait(lease_of(((struct core_future *)fut)->owner)->rds, &job->rds.base);
    return RT_OK;
}

PyObject *core_lease_wait(PyObject *op, PyObject *timeout)
{
    struct core_lease *lease = lease_of(op);
    struct core_job *job;
    uint64_t deadline;
    PyObject *fut;
    int taken;

    if (!core_lease_usable(lease))
        return raise_closed(lease);
    if (read_deadline(timeout, &deadline) < 0)
        return NULL;
    taken = is_taken(&lease->reading);
    if (taken != 0) {
        if (taken > 0)
            PyErr_SetString(PyExc_RuntimeError,
                            "another coroutine is already waiting for incoming data");
        return NULL;
    }
    job = prepare(lease->channel, op, deadline, &fut);
    if (job == NULL)
        return NULL;
    job->finish = finish_wait;
    job->send = send_wait;
    lease->reading = job;
    if (core_bridge_send(job->bridge, job, fut) < 0) {
        lease->reading = NULL;
        Py_CLEAR(fut);
    }
    return fut;
}

/* ---- writing ------------------------------------------------------------------------------ */

static int finish_sent(struct core_wake_ctx *w, struct core_bridge *bridge, struct core_job *job,
                       PyObject *fut)
{
    struct core_lease *lease = lease_of(((struct core_future *)fut)->owner);
    bool late = job->rds.base.err == RT_ETIMEOUT, waits;
    const char *why = "";
    int err;

    lease->writing = NULL;
    if (!core_lease_usable(lease)) {
        core_bridge_recycle(bridge, job);
        raise_closed(lease);
        return settle(w, fut, NULL);
    }
    err = rds_held_lost(lease->rds, &why);
    waits = rds_held_unsent(lease->rds) > RDS_HELD_UNSENT;
    if (err == RT_OK && waits && !late) {
        lease->writing = job;
        if (core_bridge_send_now(bridge, job, fut) == RT_OK) {
            Py_DECREF(fut);
            return 0;
        }
    } else {
        core_bridge_recycle(bridge, job);
    }
    if (err != RT_OK) {
        raise_lost(lease, err, why);
        return settle(w, fut, NULL);
    }
    if (waits) {
        PyErr_SetString(lease->st->native.timeout_error, "Timeout writing to socket");
        return settle(w, fut, NULL);
    }
    return settle(w, fut, Py_NewRef(Py_None));
}

static int send_wait_sent(struct core_job *job)
{
    PyObject *fut = job->rds.base.owner;

    rds_held_wait_sent(lease_of(((struct core_future *)fut)->owner)->rds, &job->rds.base);
    return RT_OK;
}

static PyObject *wait_sent(struct core_lease *lease, PyObject *timeout)
{
    struct core_job *job;
    uint64_t deadline;
    PyObject *fut;

    if (read_deadline(timeout, &deadline) < 0)
        return NULL;
    job = prepare(lease->channel, (PyObject *)lease, deadline, &fut);
    if (job == NULL)
        return NULL;
    job->finish = finish_sent;
    job->send = send_wait_sent;
    lease->writing = job;
    if (core_bridge_send(job->bridge, job, fut) < 0) {
        lease->writing = NULL;
        Py_CLEAR(fut);
    }
    return fut;
}

/* Bytes-like objects as one chunk.  NULL with an exception set. */
static struct rds_chunk *join(PyObject *const *items, Py_ssize_t count)
{
    struct rds_chunk *chunk = NULL;
    Py_buffer few[8], *views = few;
    Py_ssize_t have = 0, i;
    size_t total = 0;

    if (count > 8 && (views = PyMem_Malloc((size_t)count * sizeof *views)) == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (; have < count; have++) {
        if (PyObject_GetBuffer(items[have], &views[have], PyBUF_SIMPLE) < 0)
            goto done;
        total += (size_t)views[have].len;
    }
    chunk = rds_chunk_new(total);
    if (chunk == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (i = 0, total = 0; i < count; i++) {
        if (views[i].len > 0)
            memcpy(chunk->bytes + total, views[i].buf, (size_t)views[i].len);
        total += (size_t)views[i].len;
    }
done:
    while (have > 0)
        PyBuffer_Release(&views[--have]);
    if (views != few)
        PyMem_Free(views);
    return chunk;
}

static struct rds_chunk *chunk_of(PyObject *data)
{
    PyObject *items;
    struct rds_chunk *chunk;

    if (PyObject_CheckBuffer(data))
        return join(&data, 1);
    items = PySequence_Fast(data, "bytes, or an iterable of them, are wanted");
    if (items == NULL)
        return NULL;
    chunk = join(PySequence_Fast_ITEMS(items), PySequence_Fast_GET_SIZE(items));
    Py_DECREF(items);
    return chunk;
}

static PyObject *lease_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct core_lease *lease = lease_of(op);
    struct rds_chunk *chunk;
    bool tried = false;
    const char *why;
    uint64_t unsent;
    int err;

    if (nargs < 1 || nargs > 2) {
        PyErr_SetString(PyExc_TypeError, "write() takes data and a timeout");
        return NULL;
    }
    if (!core_lease_usable(lease))
        return raise_closed(lease);
    chunk = chunk_of(args[0]);
    if (chunk == NULL)
        return NULL;
    if (!core_lease_usable(lease)) { /* a generator closed it */
        free(chunk);
        return raise_closed(lease);
    }
    if (rds_held_write(lease->rds, chunk, &tried) != RT_OK) {
        err = rds_held_lost(lease->rds, &why);
        return raise_lost(lease, err, why);
    }
    unsent = rds_held_unsent(lease->rds);
    if (unsent == 0 || (tried && unsent <= RDS_HELD_UNSENT) || lease->writing != NULL)
        Py_RETURN_NONE;
    return wait_sent(lease, nargs == 2 ? args[1] : Py_None);
}

/* ---- reading ------------------------------------------------------------------------------ */

/* A reply as an object; a push as a Push; an error as an exception instance. */
PyObject *core_lease_reply(struct core_lease *lease, const struct rds_arena *arena, bool raw)
{
    enum rds_type type = RDS_NIL;
    PyObject *value, *push;
    uint32_t at = 0;

    value = core_reply_next(lease->channel, arena, &at, raw, &type);
    if (value == NULL)
        return NULL;
    if (type == RDS_PUSH) {
        push = PyObject_CallOneArg((PyObject *)lease->st->native.push_type, value);
        Py_SETREF(value, push);
    } else if (type == RDS_FAILURE) {
        PyErr_SetObject((PyObject *)Py_TYPE(value), value);
        Py_CLEAR(value);
    }
    return value;
}

static PyObject *lease_take(PyObject *op, PyObject *raw)
{
    struct core_lease *lease = lease_of(op);
    struct rds_received *received;
    int is_raw = PyObject_IsTrue(raw), err;
    const char *why;
    PyObject *value;

    if (is_raw < 0)
        return NULL;
    if (!core_lease_usable(lease))
        return raise_closed(lease);
    err = rds_held_lost(lease->rds, &why); /* before the look: what came first is first */
    received = rds_held_take(lease->rds);
    if (received == NULL)
        return err != RT_OK ? raise_lost(lease, err, why) : Py_NewRef(Py_Ellipsis);
    value = core_lease_reply(lease_of(op), &received->arena, is_raw != 0);
    rds_received_free(received);
    return value;
}

static PyObject *lease_poll(PyObject *op, PyObject *unused)
{
    struct core_lease *lease = lease_of(op);

    (void)unused;
    if (!core_lease_usable(lease))
        Py_RETURN_TRUE;
    rds_held_poll(lease->rds);
    return PyBool_FromLong(rds_held_ready(lease->rds));
}

/* ---- the rest ----------------------------------------------------------------------------- */

static void let_go(struct core_lease *lease)
{
    struct rds_lease *rds = lease->rds;
    bool usable = core_lease_usable(lease);

    lease->rds = NULL;
    if (rds != NULL && usable)
        rds_held_release(rds); /* otherwise it is the parent's */
}

static PyObject *lease_close(PyObject *op, PyObject *unused)
{
    (void)unused;
    let_go(lease_of(op));
    Py_RETURN_NONE;
}

static PyObject *lease_spare(PyObject *op, PyObject *unused)
{
    (void)unused;
    if (core_lease_usable(lease_of(op)))
        rds_held_spare(lease_of(op)->rds);
    Py_RETURN_NONE;
}

static PyObject *lease_resume(PyObject *op, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(core_lease_usable(lease_of(op)) && rds_held_resume(lease_of(op)->rds));
}

/* Which end of the socket, as a host, a path or None. */
static PyObject *address(PyObject *op, int (*name)(int, struct sockaddr *, socklen_t *))
{
    struct core_lease *lease = lease_of(op);
    struct sockaddr_storage where = { .ss_family = AF_UNSPEC };
    char text[INET6_ADDRSTRLEN] = "";
    socklen_t len = sizeof where;
    const void *bytes = NULL;
    int sock = -1;

    if (core_lease_usable(lease))
        sock = atomic_load(&lease->rds->conn.sock);
    if (sock < 0 || name(sock, (struct sockaddr *)&where, &len) < 0)
        Py_RETURN_NONE;
    if (where.ss_family == AF_INET)
        bytes = &((struct sockaddr_in *)&where)->sin_addr;
    else if (where.ss_family == AF_INET6)
        bytes = &((struct sockaddr_in6 *)&where)->sin6_addr;
    if (bytes == NULL || inet_ntop(where.ss_family, bytes, text, sizeof text) == NULL)
        Py_RETURN_NONE;
    return Py_BuildValue("(si)", text, ntohs(((struct sockaddr_in *)&where)->sin_port));
}

static PyObject *get_peer(PyObject *op, void *unused)
{
    (void)unused;
    return address(op, getpeername);
}

static PyObject *get_own(PyObject *op, void *unused)
{
    (void)unused;
    return address(op, getsockname);
}

static PyObject *get_usable(PyObject *op, void *unused)
{
    (void)unused;
    return PyBool_FromLong(core_lease_usable(lease_of(op)));
}

static PyObject *get_ready(PyObject *op, void *unused)
{
    struct core_lease *lease = lease_of(op);

    (void)unused;
    return PyBool_FromLong(!core_lease_usable(lease) || rds_held_ready(lease->rds));
}

/* ---- the types ---------------------------------------------------------------------------- */

static int lease_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(lease_of(op)->channel);
    return 0;
}

static void lease_dealloc(PyObject *op)
{
    struct core_lease *lease = lease_of(op);
    struct core_state *st = lease->st;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    let_go(lease); /* nobody waits: who does would have kept it */
    Py_CLEAR(lease->channel);
    PyObject_GC_Del(op);
    Py_DECREF(type);
    core_state_drop(st);
}

static PyMethodDef lease_methods[] = {
    { "write", (PyCFunction)(void (*)(void))lease_write, METH_FASTCALL,
      "write($self, data, timeout=None, /)\n--\n\n"
      "Send bytes, or an iterable of them.  None, or an awaitable where the socket does\n"
      "not keep up: of most of it being sent.  Raises ConnectionError; the awaitable\n"
      "TimeoutError too, after so many seconds." },
    { "take", lease_take, METH_O,
      "take($self, raw, /)\n--\n\n"
      "The next reply, as bytes where raw is true; Ellipsis if none has come.  A RESP3 push\n"
      "is a Push, an error an exception instance.  Raises ConnectionError when there will\n"
      "be nothing more." },
    { "wait", core_lease_wait, METH_O,
      "wait($self, timeout, /)\n--\n\n"
      "The awaitable of there being something to take: True; or False, after so many\n"
      "seconds.  One at a time; RuntimeError for another." },
    { "poll", lease_poll, METH_NOARGS,
      "poll($self, /)\n--\n\nRead what the socket has; whether there is something to take." },
    { "spare", lease_spare, METH_NOARGS,
      "spare($self, /)\n--\n\nIt is not needed just now, and may be closed to make room." },
    { "resume", lease_resume, METH_NOARGS,
      "resume($self, /)\n--\n\nIt is needed again.  False: it is closed." },
    { "close", lease_close, METH_NOARGS, "close($self, /)\n--\n\nClose the connection." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef lease_getset[] = {
    { "usable", get_usable, NULL, "Whether it is open, and this process's.", NULL },
    { "ready", get_ready, NULL, "Whether take() has something to say.", NULL },
    { "peer", get_peer, NULL, "The server's address and port, or None.", NULL },
    { "own", get_own, NULL, "Our address and port, or None.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot lease_slots[] = {
    { Py_tp_doc, "A connection that one holder has for himself." },
    { Py_tp_dealloc, lease_dealloc },
    { Py_tp_traverse, lease_traverse },
    { Py_tp_methods, lease_methods },
    { Py_tp_getset, lease_getset },
    { 0, NULL },
};

PyType_Spec core_lease_spec = {
    .name = "offloop._core.Lease",
    .basicsize = sizeof(struct core_lease),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = lease_slots,
};

static PyType_Slot push_slots[] = {
    { Py_tp_doc, "A message that the server pushed (RESP3): a list." },
    { 0, NULL },
};

PyType_Spec core_push_spec = {
    .name = "offloop._core.Push",
    .flags = Py_TPFLAGS_DEFAULT, /* and list's */
    .slots = push_slots,
};
