#include "client_type.h"

#include "args.h"
#include "../redis/rds_lease.h"
#include "bridge.h"
#include "callbacks.h"
#include "entry.h"
#include "errors.h"
#include "observed.h"
#include "reply.h"

/* ---- a reply comes home -------------------------------------------------------------- */

bool core_is_awaitable(PyObject *value)
{
    const PyAsyncMethods *async = Py_TYPE(value)->tp_as_async;

    return async != NULL && async->am_await != NULL;
}

/* What the command's caller gets: a value, or NULL with an exception set. */
static PyObject *outcome(struct core_channel *channel, struct core_job *job, PyObject *callback,
                         PyObject *options, bool *again)
{
    PyObject *value, *result;
    bool is_error = false;

    if (job->rds.base.err != RT_OK) {
        value = core_reply_failure(channel, job->rds.base.err, &job->rds.reply);
        is_error = true;
        /* What was not sent has been tried for as long as it may be. */
        *again = job->rds.maybe_run;
    } else {
        value = core_reply_object(channel, &job->rds.reply, job->raw, &is_error);
        if (value != NULL && is_error && job->empty_response != NULL &&
            PyObject_IsInstance(value, channel->st->native.response_error) == 1) {
            Py_DECREF(value);
            return Py_NewRef(job->empty_response);
        }
        *again = is_error;
    }
    if (value == NULL)
        return NULL;
    if (is_error) {
        PyErr_SetObject((PyObject *)Py_TYPE(value), value);
        Py_DECREF(value);
        return NULL;
    }
    if (callback == NULL)
        return value;
    result = core_apply_callback(channel->st, callback, options, value);
    Py_DECREF(value);
    return result;
}

/* A failed command, with all that core_client_resend() needs: a tuple. */
static PyObject *call_of(struct core_job *job, PyObject *callback, PyObject *options)
{
    return Py_BuildValue("(OOOOO)", job->keep, job->raw ? Py_True : Py_False,
                         job->empty_response != NULL ? job->empty_response : Py_Ellipsis,
                         callback != NULL ? callback : Py_None,
                         options != NULL ? options : Py_None);
}

/* Ask whether a command is to be tried again.  1: fut is settled by whoever was
 * asked; 0: it is not; -1: an exception is set. */
static int ask_retry(struct core_channel *channel, PyObject *fut, PyObject *exception,
                     PyObject *call)
{
    PyObject *retry = Py_XNewRef(channel->retry), *answer;
    int truth;

    if (retry == NULL || core_future_done(fut) ||
        atomic_load_explicit(&channel->rds->closing, memory_order_relaxed) != 0 ||
        rt_pool_state(channel->pool->rt) >= RT_POOL_DRAINING) {
        Py_XDECREF(retry);
        return 0;
    }
    answer = PyObject_CallFunctionObjArgs(retry, channel, fut, exception, call, NULL);
    Py_DECREF(retry);
    truth = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return truth;
}

static int finish_command(struct core_wake_ctx *w, struct core_bridge *bridge,
                          struct core_job *job, PyObject *fut)
{
    struct core_future *f = (struct core_future *)fut;
    struct core_channel *channel = (struct core_channel *)Py_NewRef(f->owner);
    PyObject *callback = Py_XNewRef(f->reply_callback);
    PyObject *options = Py_XNewRef(f->reply_options);
    bool again = false;
    PyObject *value = outcome(channel, job, callback, options, &again), *call = NULL;
    PyObject *exception = NULL, *chained = NULL;
    int rc = 0, asked;

    if (value == NULL && again && job->keep != NULL) {
        exception = core_take_exception();
        call = call_of(job, callback, options);
        if (call == NULL)
            PyErr_Clear(); /* no memory: it is not tried again */
    }
    core_bridge_recycle(bridge, job);
    if (call != NULL) {
        asked = ask_retry(channel, fut, exception, call);
        if (asked > 0)
            goto done;
        if (asked < 0)
            Py_XSETREF(exception, core_take_exception());
    }
    if (value != NULL && callback != NULL && core_is_awaitable(value)) {
        /* An asynchronous response callback: its outcome is the command's. */
        chained = PyObject_CallFunctionObjArgs(w->st->native.chain, fut, value, NULL);
        if (chained != NULL)
            goto done;
        Py_CLEAR(value);
    }
    if (value != NULL) {
        rc = core_future_settle_result(w, fut, value);
    } else {
        if (exception == NULL)
            exception = core_take_exception();
        rc = core_future_settle_exception(w, fut, exception);
    }
done:
    Py_XDECREF(call);
    Py_XDECREF(chained);
    Py_XDECREF(exception);
    Py_XDECREF(value);
    Py_XDECREF(options);
    Py_XDECREF(callback);
    Py_DECREF(channel);
    Py_DECREF(fut);
    return rc;
}

static int send_command(struct core_job *job)
{
    PyObject *fut = job->rds.base.owner;
    struct core_channel *channel = (struct core_channel *)((struct core_future *)fut)->owner;
    struct core_bridge *bridge = job->bridge;
    int err = rds_channel_push(channel->rds, &job->rds);

    /* The job may be home already, but nobody drains before we return. */
    if (err == RT_OK)
        core_bridge_kick(bridge, channel);
    return err;
}

/* A command that waits on the server, on a connection for its time. */
static int send_blocking(struct core_job *job)
{
    PyObject *fut = job->rds.base.owner;
    struct core_channel *channel = (struct core_channel *)((struct core_future *)fut)->owner;

    return rds_lease_submit(channel->rds, &job->rds);
}

/* ---- options --------------------------------------------------------------------------- */

/* Whether name is one of our own option names; the usual case is one comparison. */
static bool is_name(PyObject *name, PyObject *ours)
{
    return name == ours || PyUnicode_Compare(name, ours) == 0;
}

/* Sort the options of a call: what is ours into the job, the rest, which is for
 * the response callback, into a dict where there is a callback. */
static int sort_options(struct core_state *st, struct core_job *job, PyObject *const *values,
                        PyObject *kwnames, bool wanted, PyObject **rest)
{
    Py_ssize_t i, count = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);

    for (i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);

        if (is_name(name, st->native.str_keys))
            continue; /* for client-side caching only */
        if (is_name(name, st->native.str_never_decode)) {
            job->raw = true;
        } else if (is_name(name, st->native.str_empty_response)) {
            Py_XSETREF(job->empty_response, Py_NewRef(values[i]));
        } else if (wanted) {
            if (*rest == NULL && (*rest = PyDict_New()) == NULL)
                return -1;
            if (PyDict_SetItem(*rest, name, values[i]) < 0)
                return -1;
        }
    }
    return 0;
}

static bool is_upper_ascii(PyObject *name)
{
    const char *text;
    Py_ssize_t i, len;

    if (!PyUnicode_IS_ASCII(name))
        return false;
    text = (const char *)PyUnicode_1BYTE_DATA(name);
    len = PyUnicode_GET_LENGTH(name);
    for (i = 0; i < len; i++) {
        if (text[i] >= 'a' && text[i] <= 'z')
            return false;
    }
    return true;
}

int core_find_callback(PyObject *callbacks, PyObject *name, PyObject **out)
{
    PyObject *found, *upper;

    *out = NULL;
    if (callbacks == NULL || !PyUnicode_Check(name))
        return 0; /* redis-py finds none for bytes */
    if (!PyDict_Check(callbacks)) {
        found = PyObject_GetItem(callbacks, name);
        if (found == NULL && !PyErr_ExceptionMatches(PyExc_KeyError))
            return -1;
        PyErr_Clear();
        *out = found;
        return 0;
    }
    /* redis-py's dict keeps its names in upper case. */
    found = PyDict_GetItemWithError(callbacks, name);
    if (found == NULL) {
        if (PyErr_Occurred())
            return -1;
        if (PyDict_CheckExact(callbacks) || is_upper_ascii(name))
            return 0;
        upper = PyObject_CallMethod(name, "upper", NULL);
        if (upper == NULL)
            return -1;
        found = PyDict_GetItemWithError(callbacks, upper);
        Py_DECREF(upper);
        if (found == NULL)
            return PyErr_Occurred() ? -1 : 0;
    }
    *out = Py_NewRef(found);
    return 0;
}

/* ---- execute_command --------------------------------------------------------------------- */

PyObject *core_call_instead(PyObject *self, PyObject *method, PyObject *const *args,
                            Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t total = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    PyObject *few[16], **copy = few, *result;

    if (total >= 15) {
        copy = PyMem_Malloc((size_t)(total + 1) * sizeof *copy);
        if (copy == NULL)
            return PyErr_NoMemory();
    }
    copy[0] = self;
    if (total > 0)
        memcpy(copy + 1, args, (size_t)total * sizeof *copy);
    result = PyObject_VectorcallMethod(method, copy, (size_t)(nargs + 1), kwnames);
    if (copy != few)
        PyMem_Free(copy);
    return result;
}

/* Ask for the channel of the connection pool.  0, or -1 with an exception set. */
static int open_channel(struct core_client *client)
{
    struct core_native_state *native = &client->st->native;
    PyObject *channel = PyObject_CallMethodNoArgs((PyObject *)client, native->str_open_channel);

    if (channel == NULL)
        return -1;
    if (channel == Py_None) {
        client->leased_only = true;
        Py_DECREF(channel);
        return 0;
    }
    if (!Py_IS_TYPE(channel, native->channel_type)) {
        PyErr_SetString(PyExc_TypeError, "_open_channel() must return a Channel or None");
        Py_DECREF(channel);
        return -1;
    }
    Py_XSETREF(client->channel, (struct core_channel *)channel);
    return 0;
}

/* A channel that is closed (its connection pool was) is asked for anew. */
static bool is_usable(const struct core_channel *channel)
{
    return channel != NULL &&
           atomic_load_explicit(&channel->rds->closing, memory_order_relaxed) == 0;
}

int core_client_open(struct core_client *client)
{
    if (!client->leased_only && !is_usable(client->channel) && open_channel(client) < 0)
        return -1;
    return !client->leased_only;
}
/* A command as it was called.  Where it is known (core_args_describe), args has no
 * name; otherwise the name is the first of them. */
struct call {
    PyObject *known, *name;
    PyObject *const *args;
    Py_ssize_t nargs;
    PyObject *kwnames;
    uint64_t now; /* when it was made */
};

/* Its arguments with the name, to be kept while it is out: a tuple. */
static PyObject *pack(const struct call *call)
{
    Py_ssize_t named = call->known != NULL, i;
    PyObject *tuple = PyTuple_New(call->nargs + named);

    if (tuple != NULL && named)
        PyTuple_SET_ITEM(tuple, 0, Py_NewRef(call->name));
    for (i = 0; tuple != NULL && i < call->nargs; i++)
        PyTuple_SET_ITEM(tuple, i + named, Py_NewRef(call->args[i]));
    return tuple;
}

/* The way of a command: over the shared connection, or one for itself. */
static void set_route(struct core_job *job, const struct core_channel *channel,
                      enum rds_sharing sharing)
{
    job->finish = finish_command;
    if (sharing == RDS_BLOCKING) {
        /* Its time counts from when it is sent: redis-py's rule. */
        job->rds.patience = channel->timeout;
        job->waits = true;
        job->send = send_blocking;
    } else {
        job->send = send_command;
    }
}

/* A command is made, now.  Whether metrics are on: as core_observed(). */
static int make_call(struct core_client *client, struct core_bridge *bridge, struct call *call)
{
    call->now = bridge->clock = rt_now();
    bridge->ticked = true;
    return bridge->outstanding > 0 ? core_observed_at(client->st, call->now)
                                   : core_observed(client->st, false);
}

static PyObject *execute_native(struct core_client *client, struct core_bridge *bridge,
                                PyObject *loop, const struct call *call, bool *leased)
{
    struct core_channel *channel = client->channel;
    struct core_state *st = client->st;
    PyObject *fut = NULL;
    struct core_future *f;
    struct core_job *job;
    enum rds_sharing sharing = RDS_SHARED;
    uint64_t deadline = RT_NEVER;
    int rc;

    if (channel->timeout != RT_NEVER)
        deadline = rt_after(call->now, channel->timeout);
    job = core_bridge_job(bridge, deadline);
    if (job == NULL)
        return NULL;
    if (call->known != NULL)
        rc = core_args_encode_known(channel, &job->rds, call->known, call->args, call->nargs,
                                    &sharing);
    else
        rc = core_args_encode(channel, &job->rds, call->args, call->nargs, &sharing);
    *leased = rc == 0 && (sharing == RDS_STATEFUL || sharing == RDS_UNKNOWN);
    if (rc < 0 || *leased)
        goto fail;
    fut = core_future_new(st, loop, bridge->debug);
    if (fut == NULL)
        goto fail;
    f = (struct core_future *)fut;
    if (core_find_callback(client->callbacks, call->known != NULL ? call->name : call->args[0],
                           &f->reply_callback) < 0)
        goto fail;
    if (call->kwnames != NULL && sort_options(st, job, call->args + call->nargs, call->kwnames,
                                              f->reply_callback != NULL, &f->reply_options) < 0)
        goto fail;
    if (channel->retry != NULL && (job->rds.reads || channel->retry_writes) &&
        (job->keep = pack(call)) == NULL)
        goto fail;
    f->owner = Py_NewRef(channel);
    set_route(job, channel, sharing);
    if (core_bridge_send(bridge, job, fut) < 0) {
        Py_DECREF(fut);
        return NULL;
    }
    return fut;
fail:
    core_bridge_recycle(bridge, job);
    Py_XDECREF(fut);
    return NULL;
}

PyObject *core_client_resend(struct core_channel *channel, PyObject *call)
{
    PyObject *args, *raw, *empty, *callback, *options, *loop = NULL, *fut = NULL;
    enum rds_sharing sharing = RDS_SHARED;
    struct core_bridge *bridge;
    struct core_future *f;
    struct core_job *job;

    if (!PyArg_ParseTuple(call, "O!OOOO:_resend", &PyTuple_Type, &args, &raw, &empty, &callback,
                          &options) ||
        core_channel_check_fork(channel) < 0)
        return NULL;
    bridge = core_bridge_of(channel->pool, &loop);
    if (bridge == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "no running event loop");
        return NULL;
    }
    job = core_bridge_job(bridge, channel->timeout != RT_NEVER
                                      ? rt_after(rt_now(), channel->timeout) : RT_NEVER);
    if (job == NULL)
        return NULL;
    if (core_args_encode(channel, &job->rds, PySequence_Fast_ITEMS(args), PyTuple_GET_SIZE(args),
                         &sharing) < 0)
        goto fail;
    if (sharing == RDS_STATEFUL || sharing == RDS_UNKNOWN) {
        PyErr_SetString(PyExc_ValueError, "the command cannot share a connection");
        goto fail;
    }
    fut = core_future_new(channel->st, loop, bridge->debug);
    if (fut == NULL)
        goto fail;
    f = (struct core_future *)fut;
    job->raw = raw == Py_True;
    job->empty_response = empty != Py_Ellipsis ? Py_NewRef(empty) : NULL;
    f->reply_callback = callback != Py_None ? Py_NewRef(callback) : NULL;
    f->reply_options = options != Py_None ? Py_NewRef(options) : NULL;
    f->owner = Py_NewRef(channel);
    set_route(job, channel, sharing);
    if (core_bridge_send(bridge, job, fut) < 0)
        Py_CLEAR(fut);
    return fut;
fail:
    core_bridge_recycle(bridge, job);
    return NULL;
}

static PyObject *execute_command(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames)
{
    struct core_client *client = (struct core_client *)op;
    struct core_native_state *native = &client->st->native;
    PyObject *loop = NULL, *result;
    struct call call = { .args = args, .nargs = nargs, .kwnames = kwnames };
    struct core_bridge *bridge;
    bool leased = false;
    int observed;

    if (core_client_open(client) < 0)
        return NULL;
    if (client->leased_only)
        return core_call_instead(op, native->str_execute_leased, args, nargs, kwnames);
    if (core_channel_check_fork(client->channel) < 0)
        return NULL;
    bridge = core_bridge_of(client->channel->pool, &loop);
    if (bridge == NULL) {
        if (PyErr_Occurred())
            return NULL;
        return core_call_instead(op, native->str_execute_deferred, args, nargs, kwnames);
    }
    observed = make_call(client, bridge, &call);
    if (observed != 0)
        return observed < 0 ? NULL
                            : core_call_instead(op, native->str_execute_leased, args, nargs, kwnames);
    result = execute_native(client, bridge, loop, &call, &leased);
    if (result == NULL && leased)
        return core_call_instead(op, native->str_execute_leased, args, nargs, kwnames);
    return result;
}

int core_client_is_changed(struct core_client *client)
{
    PyObject **dict = _PyObject_GetDictPtr((PyObject *)client);

    if (dict == NULL || *dict == NULL)
        return 0;
    return PyDict_Contains(*dict, client->st->native.str_execute_command);
}

int core_client_executes(struct core_client *client, PyObject *how)
{
    struct core_native_state *native = &client->st->native;
    PyTypeObject *type = Py_TYPE(client);
    PyObject *found;
    int changed;

    if (type->tp_getattro != PyObject_GenericGetAttr)
        return 0;
    found = _PyType_Lookup(type, native->str_execute_command);
    if (found != how &&
        (found == NULL || core_entry_native(client->st, found) != how))
        return 0;
    changed = core_client_is_changed(client);
    return changed < 0 ? -1 : !changed;
}

PyObject *core_client_send(struct core_client *client, PyObject *known, PyObject *name,
                           PyObject *const *args, Py_ssize_t nargs, bool *declined)
{
    struct call call = { .known = known, .name = name, .args = args, .nargs = nargs };
    struct core_bridge *bridge;
    PyObject *loop = NULL;
    int observed;

    *declined = client->leased_only || !is_usable(client->channel);
    if (*declined || core_channel_check_fork(client->channel) < 0)
        return NULL;
    bridge = core_bridge_of(client->channel->pool, &loop);
    if (bridge == NULL) {
        *declined = !PyErr_Occurred();
        return NULL;
    }
    observed = make_call(client, bridge, &call);
    if (observed != 0) {
        *declined = observed > 0;
        return NULL;
    }
    return execute_native(client, bridge, loop, &call, declined);
}

PyObject *core_client_send_wire(struct core_channel *channel, PyObject *wire)
{
    struct core_bridge *bridge;
    PyObject *loop = NULL, *fut;
    struct core_job *job;
    char *bytes;
    Py_ssize_t len;

    if (PyBytes_AsStringAndSize(wire, &bytes, &len) < 0 || core_channel_check_fork(channel) < 0)
        return NULL;
    bridge = core_bridge_of(channel->pool, &loop);
    if (bridge == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "no running event loop");
        return NULL;
    }
    job = core_bridge_job(bridge, channel->timeout != RT_NEVER
                                      ? rt_after(rt_now(), channel->timeout) : RT_NEVER);
    if (job == NULL)
        return NULL;
    fut = core_future_new(channel->st, loop, bridge->debug);
    if (fut != NULL && len > RDS_INLINE && (job->rds.request = malloc((size_t)len)) == NULL) {
        job->rds.request = job->rds.inline_bytes;
        Py_CLEAR(fut);
        PyErr_NoMemory();
    }
    if (fut == NULL) {
        core_bridge_recycle(bridge, job);
        return NULL;
    }
    memcpy(job->rds.request, bytes, (size_t)len);
    job->rds.request_len = (size_t)len;
    ((struct core_future *)fut)->owner = Py_NewRef(channel);
    job->finish = finish_command;
    job->send = send_command;
    if (core_bridge_send(bridge, job, fut) < 0)
        Py_CLEAR(fut);
    return fut;
}

/* ---- attributes ----------------------------------------------------------------------------- */

static PyObject *get_or_raise(PyObject *value, const char *name)
{
    if (value != NULL)
        return Py_NewRef(value);
    PyErr_SetString(PyExc_AttributeError, name);
    return NULL;
}

static PyObject *get_connection_pool(PyObject *op, void *unused)
{
    (void)unused;
    return get_or_raise(((struct core_client *)op)->connection_pool, "connection_pool");
}

static int set_connection_pool(PyObject *op, PyObject *value, void *unused)
{
    struct core_client *client = (struct core_client *)op;

    (void)unused;
    Py_XSETREF(client->connection_pool, Py_XNewRef(value));
    Py_CLEAR(client->channel); /* its channel is asked for at the next command */
    client->leased_only = false;
    return 0;
}

static PyObject *get_callbacks(PyObject *op, void *unused)
{
    (void)unused;
    return get_or_raise(((struct core_client *)op)->callbacks, "response_callbacks");
}

static int set_callbacks(PyObject *op, PyObject *value, void *unused)
{
    (void)unused;
    Py_XSETREF(((struct core_client *)op)->callbacks, Py_XNewRef(value));
    return 0;
}

/* ---- the type --------------------------------------------------------------------------------- */

static PyObject *client_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct core_state *st = core_state_of_type(type);
    struct core_client *client;

    (void)args;
    (void)kwargs;
    if (st == NULL)
        return NULL;
    client = (struct core_client *)type->tp_alloc(type, 0);
    if (client != NULL)
        client->st = core_state_hold(st);
    return (PyObject *)client;
}

int core_client_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_client *client = (struct core_client *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(client->channel);
    Py_VISIT(client->connection_pool);
    Py_VISIT(client->callbacks);
    return 0;
}

int core_client_clear(PyObject *op)
{
    struct core_client *client = (struct core_client *)op;

    Py_CLEAR(client->channel);
    Py_CLEAR(client->connection_pool);
    Py_CLEAR(client->callbacks);
    return 0;
}

void core_client_dealloc(PyObject *op)
{
    struct core_state *st = ((struct core_client *)op)->st;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    (void)core_client_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
    core_state_drop(st);
}

static PyMethodDef client_methods[] = {
    { "execute_command", (PyCFunction)(void (*)(void))execute_command,
      METH_FASTCALL | METH_KEYWORDS,
      "execute_command($self, /, *args, **options)\n--\n\n"
      "Send a command; the awaitable of its reply.\n\n"
      "The command is sent when this is called, not when the reply is awaited.\n"
      "args: the command's name and arguments (bytes, str, int, float, bytearray,\n"
      "memoryview); options: for the response callback, and redis-py's NEVER_DECODE\n"
      "and EMPTY_RESPONSE.  Raises DataError for an argument of another type.\n"
      "May be called from any thread; the awaitable belongs to the loop that runs\n"
      "in it.  Where none runs, a coroutine is returned that sends when awaited." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef client_getset[] = {
    { "connection_pool", get_connection_pool, set_connection_pool,
      "The connection pool, which has the channel.", NULL },
    { "response_callbacks", get_callbacks, set_callbacks,
      "Command name to the function that its reply goes through.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot client_slots[] = {
    { Py_tp_doc, "The native half of offloop.redis.Redis." },
    { Py_tp_new, client_new },
    { Py_tp_dealloc, core_client_dealloc },
    { Py_tp_traverse, core_client_traverse },
    { Py_tp_clear, core_client_clear },
    { Py_tp_methods, client_methods },
    { Py_tp_getset, client_getset },
    { 0, NULL },
};

PyType_Spec core_client_spec = {
    .name = "offloop._core.Client",
    .basicsize = sizeof(struct core_client),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = client_slots,
};
