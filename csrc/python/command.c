#include "command.h"

#include "../redis/rds_lease.h"
#include "args.h"
#include "bridge.h"
#include "callbacks.h"
#include "errors.h"
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

/* A failed command, with all that core_command_resend() needs: a tuple. */
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

/* ---- sending ------------------------------------------------------------------------------- */

/* Its arguments with the name, to be kept while it is out: a tuple. */
static PyObject *pack(const struct core_command *call)
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

PyObject *core_command_send(struct core_client *client, struct core_bridge *bridge,
                            PyObject *loop, const struct core_command *call, bool *leased)
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

/* A job, with the channel's timeout, in the loop that runs in this thread.  NULL with an
 * exception set. */
static struct core_job *job_here(struct core_channel *channel, PyObject **loop)
{
    struct core_bridge *bridge;

    if (core_channel_check_fork(channel) < 0)
        return NULL;
    bridge = core_bridge_of(channel->pool, loop);
    if (bridge == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "no running event loop");
        return NULL;
    }
    return core_bridge_job(bridge, channel->timeout != RT_NEVER
                                       ? rt_after(rt_now(), channel->timeout) : RT_NEVER);
}

PyObject *core_command_resend(struct core_channel *channel, PyObject *call)
{
    PyObject *args, *raw, *empty, *callback, *options, *loop = NULL, *fut = NULL;
    enum rds_sharing sharing = RDS_SHARED;
    struct core_bridge *bridge;
    struct core_future *f;
    struct core_job *job;

    if (!PyArg_ParseTuple(call, "O!OOOO:_resend", &PyTuple_Type, &args, &raw, &empty, &callback,
                          &options))
        return NULL;
    job = job_here(channel, &loop);
    if (job == NULL)
        return NULL;
    bridge = job->bridge;
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

PyObject *core_command_send_wire(struct core_channel *channel, PyObject *wire)
{
    struct core_bridge *bridge;
    PyObject *loop = NULL, *fut;
    struct core_job *job;
    char *bytes;
    Py_ssize_t len;

    if (PyBytes_AsStringAndSize(wire, &bytes, &len) < 0)
        return NULL;
    job = job_here(channel, &loop);
    if (job == NULL)
        return NULL;
    bridge = job->bridge;
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
