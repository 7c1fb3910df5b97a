#include "channel_type.h"

#include <structmember.h>

#include "../redis/rds_lease.h"
#include "bridge.h"
#include "channel_options.h"
#include "command.h"
#include "errors.h"
#include "lease_type.h"
#include "options.h"
#include "sharing.h"

/* ---- credentials ---------------------------------------------------------------------- */

/* What the native channel knows of its Python object: a worker may ask at a time
 * when the object is gone. */
struct core_asker {
    _Atomic uint32_t refs;
    struct core_channel *channel; /* borrowed; only with the GIL; NULL once gone */
};

static void asker_unref(void *user)
{
    struct core_asker *asker = user;

    if (asker != NULL && atomic_fetch_sub(&asker->refs, 1) == 1)
        free(asker);
}

/* A request on its way to the loop. */
struct request {
    struct core_job job;
    struct core_asker *asker;
};

static int finish_request(struct core_wake_ctx *w, struct core_bridge *bridge,
                          struct core_job *job, PyObject *fut)
{
    struct request *request = RT_CONTAINER_OF(job, struct request, job);
    struct core_channel *channel = request->asker->channel;
    PyObject *done = NULL;

    (void)bridge;
    (void)fut;
    if (channel != NULL && w != NULL) {
        Py_INCREF(channel);
        done = PyObject_CallFunctionObjArgs(channel->provider, channel, w->loop_borrowed, NULL);
        if (done == NULL) {
            Py_XSETREF(channel->provider_error, core_take_exception());
            (void)rds_channel_credentials(channel->rds, RT_ECREDENTIALS, NULL, NULL);
        }
        Py_XDECREF(done);
        Py_DECREF(channel);
    }
    asker_unref(request->asker);
    free(request);
    return 0;
}

/* A worker needs credentials: tell the loop of a command that waits for them. */
static int ask(void *user, struct rt_mailbox *mailbox)
{
    struct core_asker *asker = user;
    struct request *request = calloc(1, sizeof *request);

    if (request == NULL)
        return RT_ENOMEM;
    atomic_fetch_add(&asker->refs, 1);
    request->asker = asker;
    rds_job_init(&request->job.rds, mailbox, RT_NEVER);
    request->job.rds.base.kind = CORE_JOB_VISITOR;
    request->job.finish = finish_request;
    RT_CHECK(rt_job_move(&request->job.rds.base, RT_JOB_IDLE, RT_JOB_QUEUED));
    rt_pool_complete(&request->job.rds.base, RT_OK);
    return RT_OK;
}

/* ---- making ------------------------------------------------------------------------------ */

static int open_native(struct core_channel *channel)
{
    PyObject *secured = core_option(channel->options, "tls");
    struct rds_tls_options tls;
    struct rds_options options;
    int err;

    if (core_read_options(channel->options, &options) < 0 ||
        (secured != NULL && core_read_tls(secured, &tls) < 0))
        return -1;
    if (secured != NULL)
        options.tls = &tls;
    err = rds_channel_new(channel->pool->rt, &options, &channel->rds);
    if (err != RT_OK)
        return core_raise_err(channel->st, err, "The connection's options");
    channel->rds->credentials_needed = ask;
    channel->rds->user = channel->asker;
    channel->rds->user_free = asker_unref;
    atomic_fetch_add(&channel->asker->refs, 1);
    channel->generation = channel->pool->generation;
    return 0;
}

int core_channel_check_fork(struct core_channel *channel)
{
    struct rds_channel *old = channel->rds;

    if (core_pool_check_fork(channel->pool) < 0)
        return -1;
    if (channel->generation == channel->pool->generation)
        return 0;
    /* The connection is the parent's: close our copy of it and leave it be. */
    rds_channel_abandon(old);
    channel->rds = NULL;
    if (open_native(channel) == 0)
        return 0;
    channel->rds = old;
    return -1;
}

static int set_encoding(struct core_channel *channel, PyObject *options)
{
    PyObject *encoding = core_option(options, "encoding");
    PyObject *errors = core_option(options, "encoding_errors");
    const char *name;

    channel->encoding = encoding != NULL ? PyObject_Str(encoding) : PyUnicode_FromString("utf-8");
    channel->encoding_errors = errors != NULL ? PyObject_Str(errors)
                                              : PyUnicode_FromString("strict");
    if (channel->encoding == NULL || channel->encoding_errors == NULL)
        return -1;
    channel->encoding_utf8 = PyUnicode_AsUTF8(channel->encoding);
    channel->errors_utf8 = PyUnicode_AsUTF8(channel->encoding_errors);
    if (channel->encoding_utf8 == NULL || channel->errors_utf8 == NULL)
        return -1;
    name = channel->encoding_utf8;
    channel->plain_utf8 = (strcasecmp(name, "utf-8") == 0 || strcasecmp(name, "utf8") == 0) &&
                          strcmp(channel->errors_utf8, "strict") == 0;
    return core_option_flag(options, "decode", &channel->decode);
}

static int channel_init(struct core_channel *channel, PyObject *pool, PyObject *options)
{
    channel->pool = (struct core_pool *)Py_NewRef(pool);
    channel->options = PyDict_Copy(options);
    channel->learned = PyDict_New();
    channel->timeout = RT_NEVER;
    channel->asker = calloc(1, sizeof *channel->asker);
    if (channel->options == NULL || channel->learned == NULL)
        return -1;
    if (channel->asker == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    atomic_init(&channel->asker->refs, 1);
    channel->asker->channel = channel;
    channel->provider = Py_XNewRef(core_option(options, "provider"));
    if (set_encoding(channel, options) < 0 ||
        core_option_seconds(options, "timeout", &channel->timeout) < 0 ||
        core_pool_check_fork(channel->pool) < 0)
        return -1;
    return open_native(channel);
}

static PyObject *channel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "pool", "options", NULL };
    struct core_state *st = core_state_of_type(type);
    struct core_channel *channel = NULL;
    PyObject *pool, *options;

    if (st == NULL)
        return NULL;
    if (st->native.parse_error == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "offloop.redis was not imported");
        return NULL;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!:Channel", names, st->native.pool_type,
                                     &pool, &PyDict_Type, &options))
        return NULL;
    channel = (struct core_channel *)type->tp_alloc(type, 0);
    if (channel == NULL)
        return NULL;
    channel->st = core_state_hold(st);
    if (channel_init(channel, pool, options) < 0)
        Py_CLEAR(channel);
    return (PyObject *)channel;
}

/* ---- methods ------------------------------------------------------------------------------- */

static PyObject *channel_credentials(PyObject *op, PyObject *args)
{
    struct core_channel *channel = (struct core_channel *)op;
    const char *username = NULL, *password = NULL;

    if (!PyArg_ParseTuple(args, "zs:credentials", &username, &password))
        return NULL;
    if (rds_channel_credentials(channel->rds, RT_OK, username, password) != RT_OK)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *channel_credentials_failed(PyObject *op, PyObject *exception)
{
    struct core_channel *channel = (struct core_channel *)op;

    if (!PyExceptionInstance_Check(exception)) {
        PyErr_SetString(PyExc_TypeError, "an exception instance is wanted");
        return NULL;
    }
    Py_XSETREF(channel->provider_error, Py_NewRef(exception));
    if (rds_channel_credentials(channel->rds, RT_ECREDENTIALS, NULL, NULL) != RT_OK)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* login(username, password): for the connections that are made from now on, those of
 * a forked child among them. */
static PyObject *channel_login(PyObject *op, PyObject *args)
{
    struct core_channel *channel = (struct core_channel *)op;
    const char *username = NULL, *password = NULL;

    if (!PyArg_ParseTuple(args, "zs:login", &username, &password) ||
        core_channel_check_fork(channel) < 0)
        return NULL;
    if (PyDict_SetItemString(channel->options, "username", PyTuple_GET_ITEM(args, 0)) < 0 ||
        PyDict_SetItemString(channel->options, "password", PyTuple_GET_ITEM(args, 1)) < 0)
        return NULL;
    if (rds_channel_login(channel->rds, username, password) != RT_OK)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *channel_retry(PyObject *op, PyObject *args)
{
    struct core_channel *channel = (struct core_channel *)op;
    PyObject *retry;
    int writes;

    if (!PyArg_ParseTuple(args, "Op:_retry", &retry, &writes))
        return NULL;
    Py_XSETREF(channel->retry, retry == Py_None ? NULL : Py_NewRef(retry));
    channel->retry_writes = writes != 0;
    Py_RETURN_NONE;
}

static PyObject *channel_resend(PyObject *op, PyObject *call)
{
    return core_command_resend((struct core_channel *)op, call);
}

static PyObject *channel_renewed(PyObject *op, PyObject *unused)
{
    struct core_channel *channel = (struct core_channel *)op;

    (void)unused;
    if (core_channel_check_fork(channel) < 0)
        return NULL;
    rds_channel_renewed(channel->rds);
    Py_RETURN_NONE;
}

static PyObject *channel_hold(PyObject *op, PyObject *unused)
{
    (void)unused;
    return core_lease_hold((struct core_channel *)op);
}

static PyObject *channel_send_wire(PyObject *op, PyObject *wire)
{
    return core_command_send_wire((struct core_channel *)op, wire);
}

/* ---- closing --------------------------------------------------------------------------------- */

static PyObject *channel_disconnect(PyObject *op, PyObject *arg)
{
    struct core_channel *channel = (struct core_channel *)op;
    int in_use = PyObject_IsTrue(arg);

    if (in_use < 0 || core_channel_check_fork(channel) < 0)
        return NULL;
    rds_channel_disconnect(channel->rds);
    rds_lease_disconnect(channel->rds, in_use);
    Py_RETURN_NONE;
}

static int finish_close(struct core_wake_ctx *w, struct core_bridge *bridge, struct core_job *job,
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
    struct core_channel *channel = (struct core_channel *)job->keep;

    return rds_channel_close(channel->rds, job->rds.base.deadline, &job->rds.base);
}

/* close(timeout): a future that is done when the connection is closed; None when
 * somebody else waits for that, or where no loop runs. */
static PyObject *channel_close(PyObject *op, PyObject *arg)
{
    struct core_channel *channel = (struct core_channel *)op;
    double seconds = PyFloat_AsDouble(arg);
    struct core_bridge *bridge;
    PyObject *loop = NULL, *fut = NULL;
    struct core_job *job = NULL;
    uint64_t until;
    int err;

    if ((seconds == -1.0 && PyErr_Occurred()) || core_channel_check_fork(channel) < 0)
        return NULL;
    until = seconds < 1e9 ? rt_after(rt_now(), seconds > 0 ? (uint64_t)(seconds * 1e9) : 0)
                          : RT_NEVER;
    core_bridge_reap(channel->pool);
    bridge = core_bridge_of(channel->pool, &loop);
    if (bridge == NULL) {
        if (PyErr_Occurred())
            return NULL;
        (void)rds_channel_close(channel->rds, until, NULL);
        Py_RETURN_NONE;
    }
    fut = core_future_new(channel->st, loop, bridge->debug);
    job = fut != NULL ? core_bridge_job(bridge, until) : NULL;
    if (job == NULL) {
        Py_XDECREF(fut);
        return NULL;
    }
    job->finish = finish_close;
    job->send = send_close;
    job->keep = Py_NewRef(op);
    err = core_bridge_send_now(bridge, job, fut);
    if (err == RT_OK)
        return fut;
    Py_DECREF(fut);
    if (err == RT_ECLOSED)
        Py_RETURN_NONE;
    core_raise_err(channel->st, err, "Closing the connection");
    return NULL;
}

static PyObject *channel_stats(PyObject *op, PyObject *unused)
{
    struct core_channel *channel = (struct core_channel *)op;
    const struct rds_lessor *lessor;
    const struct rds_stats *s;
    PyObject *dict;
    size_t i;

    (void)unused;
    if (core_channel_check_fork(channel) < 0)
        return NULL;
    s = &channel->rds->stats;
    lessor = channel->rds->lessor;
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {
        { "commands", rds_channel_submitted(channel->rds) - rt_read(&s->pipelines) +
                          rt_read(&s->pipelined) },
        { "pipelines", rt_read(&s->pipelines) },
        { "replies", rt_read(&s->replies) },
        { "batches", rt_read(&s->batches) },
        { "writes", rt_read(&s->writes) },
        { "inline_sends", rt_read(&s->inline_sends) },
        { "inline_reads", rt_read(&s->inline_reads) },
        { "loans", rt_read(&s->loans) },
        { "queue_depth", rds_channel_depth(channel->rds) },
        { "queue_high_water", rt_read(&s->high_water) },
        { "connections", rds_channel_connections(channel->rds) },
        { "large_reads_aside", rt_read(&channel->rds->aside.commands) },
        { "connects", rt_read(&s->connects) },
        { "connect_failures", rt_read(&s->connect_failures) },
        { "tls_handshakes", rt_read(&s->tls_handshakes) },
        { "tls_resumed", rt_read(&s->tls_resumed) },
        { "losses", rt_read(&s->losses) },
        { "bytes_in", rt_read(&s->bytes_in) },
        { "bytes_out", rt_read(&s->bytes_out) },
        { "errors", rt_read(&s->errors) },
        { "timeouts", rt_read(&s->timeouts) },
        { "cancelled", rt_read(&s->cancelled) },
        { "dropped_replies", rt_read(&s->dropped) },
        { "pushes", rt_read(&s->pushes) },
        { "retained_unsent", rt_read(&s->retained) },
        { "blocking_commands", rt_read(&lessor->commands) },
        { "held", rt_read(&lessor->held) },
        { "held_pushes", rt_read(&lessor->pushes) },
        { "leases", rt_read(&lessor->open) },
        { "leases_idle", rt_read(&lessor->idle) },
        { "leases_high_water", rt_read(&lessor->open_high) },
        { "leases_opened", rt_read(&lessor->opened) },
        { "waiting_for_lease", rt_read(&lessor->queued) },
    };

    dict = PyDict_New();
    for (i = 0; dict != NULL && i < sizeof rows / sizeof *rows; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(rows[i].value);

        if (value == NULL || PyDict_SetItemString(dict, rows[i].name, value) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *get_endpoint(PyObject *op, void *unused)
{
    (void)unused;
    return PyUnicode_DecodeFSDefault(rds_channel_endpoint(((struct core_channel *)op)->rds));
}

static PyObject *get_pool(PyObject *op, void *unused)
{
    (void)unused;
    return Py_NewRef(((struct core_channel *)op)->pool);
}

static PyObject *get_closed(PyObject *op, void *unused)
{
    struct core_channel *channel = (struct core_channel *)op;

    (void)unused;
    return PyBool_FromLong(atomic_load(&channel->rds->closing) != 0 ||
                           rt_pool_state(channel->pool->rt) >= RT_POOL_DRAINING);
}

static PyObject *channel_repr(PyObject *op)
{
    return PyUnicode_FromFormat("<offloop._core.Channel to %s>",
                                rds_channel_endpoint(((struct core_channel *)op)->rds));
}

/* ---- the type ----------------------------------------------------------------------------- */

static int channel_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_channel *channel = (struct core_channel *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(channel->pool);
    Py_VISIT(channel->options);
    Py_VISIT(channel->learned);
    Py_VISIT(channel->provider);
    Py_VISIT(channel->provider_error);
    Py_VISIT(channel->retry);
    return 0;
}

static int channel_clear(PyObject *op)
{
    struct core_channel *channel = (struct core_channel *)op;

    Py_CLEAR(channel->provider);
    Py_CLEAR(channel->provider_error);
    Py_CLEAR(channel->retry);
    Py_CLEAR(channel->options);
    Py_CLEAR(channel->learned);
    return 0;
}

static void channel_dealloc(PyObject *op)
{
    struct core_channel *channel = (struct core_channel *)op;
    struct core_state *st = channel->st;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    if (channel->weakrefs != NULL)
        PyObject_ClearWeakRefs(op);
    if (channel->asker != NULL)
        channel->asker->channel = NULL;
    /* The native channel is of the parent's where this is a fork. */
    if (channel->rds != NULL && channel->generation == channel->pool->generation)
        rds_channel_release(channel->rds);
    asker_unref(channel->asker);
    (void)channel_clear(op);
    Py_CLEAR(channel->encoding);
    Py_CLEAR(channel->encoding_errors);
    Py_CLEAR(channel->pool);
    type->tp_free(op);
    Py_DECREF(type);
    core_state_drop(st);
}

static PyMethodDef channel_methods[] = {
    { "stats", channel_stats, METH_NOARGS,
      "stats($self, /)\n--\n\nThe channel's counters, as a dict.  From any thread." },
    { "close", channel_close, METH_O,
      "close($self, timeout, /)\n--\n\n"
      "Finish what is under way within so many seconds, fail the rest, close." },
    { "disconnect", channel_disconnect, METH_O,
      "disconnect($self, in_use, /)\n--\n\n"
      "Close the shared connection once it is quiet, and the idle ones of blocking\n"
      "commands, with in_use the others too; the next command makes a new one." },
    { "hold", channel_hold, METH_NOARGS,
      "hold($self, /)\n--\n\nA connection for oneself: the awaitable of a Lease." },
    { "login", channel_login, METH_VARARGS,
      "login($self, username, password, /)\n--\n\n"
      "Log in with these from the next connection on; those that are open stay." },
    { "_retry", channel_retry, METH_VARARGS,
      "_retry($self, retry, writes, /)\n--\n\n"
      "Ask retry(channel, future, error, call) when a command failed that only reads or,\n"
      "with writes, any: true, and it settles the future, by _resend(call) perhaps." },
    { "_resend", channel_resend, METH_O,
      "_resend($self, call, /)\n--\n\nSend a command again that failed; a Future of its own." },
    { "renewed", channel_renewed, METH_NOARGS,
      "renewed($self, /)\n--\n\n"
      "The provider has new credentials: blocking commands get new connections." },
    { "_send_wire", channel_send_wire, METH_O,
      "_send_wire($self, wire, /)\n--\n\n"
      "Send one command, encoded already, over the shared connection; a Future." },
    { "sharing", core_channel_sharing, METH_O,
      "sharing($self, name, /)\n--\n\n"
      "What a command of that name needs: 'shared', 'blocking', 'stateful', 'depends' on its\n"
      "arguments, or 'unknown' until learn() was told." },
    { "learn", core_channel_learn, METH_VARARGS,
      "learn($self, name, sharing, /)\n--\n\n"
      "What the server said of a name that is in no table: 'shared', 'blocking' or 'stateful';\n"
      "'unknown' to ask it again." },
    { "credentials", channel_credentials, METH_VARARGS,
      "credentials($self, username, password, /)\n--\n\nAnswer the provider's call." },
    { "credentials_failed", channel_credentials_failed, METH_O,
      "credentials_failed($self, exception, /)\n--\n\nAnswer that there are none." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef channel_getset[] = {
    { "endpoint", get_endpoint, NULL, "host:port or the socket's path.", NULL },
    { "pool", get_pool, NULL, "The pool that serves the channel.", NULL },
    { "closed", get_closed, NULL, "Whether new commands are refused.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyMemberDef channel_members[] = {
    { "__weaklistoffset__", T_PYSSIZET, offsetof(struct core_channel, weakrefs), READONLY, NULL },
    { NULL, 0, 0, 0, NULL },
};

static PyType_Slot channel_slots[] = {
    { Py_tp_doc, "Channel(pool, options)\n--\n\nOne Redis endpoint on a pool." },
    { Py_tp_new, channel_new },
    { Py_tp_dealloc, channel_dealloc },
    { Py_tp_traverse, channel_traverse },
    { Py_tp_clear, channel_clear },
    { Py_tp_repr, channel_repr },
    { Py_tp_methods, channel_methods },
    { Py_tp_getset, channel_getset },
    { Py_tp_members, channel_members },
    { 0, NULL },
};

PyType_Spec core_channel_spec = {
    .name = "offloop._core.Channel",
    .basicsize = sizeof(struct core_channel),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = channel_slots,
};
