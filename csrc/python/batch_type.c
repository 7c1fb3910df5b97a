#include "batch_type.h"

#include "bridge.h"
#include "callbacks.h"
#include "command.h"
#include "errors.h"
#include "methods.h"
#include "reply.h"

/* What of the replies comes next. */
enum phase {
    AT_MULTI,   /* a transaction's first reply */
    AT_QUEUED,  /* one for each command, while it is queued by the server */
    AT_EXEC,    /* the array of results, or why there is none */
    AT_RESULTS, /* the replies themselves */
    AT_END,
};

struct core_batch {
    PyObject_HEAD
    struct core_state *st;
    struct core_channel *channel; /* owned */
    struct core_entries entries;
    struct rds_pipeline *pipeline; /* NULL while the job has it */
    PyObject *results;   /* list, owned */
    PyObject *refused;   /* list of (index, exception), owned; NULL: none */
    PyObject *outcome;   /* what EXEC gave instead of an array, owned */
    enum phase phase;
    uint32_t at;         /* replies of the phase that are converted */
    uint32_t expected;   /* of them in AT_RESULTS */
    size_t applied;      /* results that have been through their callback */
    bool sent, failed;   /* failed: an exception is among the results */
    bool writes;         /* some command may change something */
    bool unsent;         /* nothing was sent, and that is certain */
};

/* ---- entries ------------------------------------------------------------------------- */

struct core_entry *core_entries_add(struct core_entries *entries)
{
    struct core_entry *entry;

    if (entries->count == entries->cap) {
        size_t cap = entries->cap > 0 ? entries->cap * 2 : 16;
        struct core_entry *grown = PyMem_Realloc(entries->at, cap * sizeof *grown);

        if (grown == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        entries->at = grown;
        entries->cap = cap;
    }
    entry = &entries->at[entries->count++];
    memset(entry, 0, sizeof *entry);
    return entry;
}

void core_entries_clear(struct core_entries *entries)
{
    /* Taken off first: dropping an argument may run other code. */
    struct core_entries old = *entries;
    size_t i;

    memset(entries, 0, sizeof *entries);
    for (i = 0; i < old.count; i++) {
        Py_XDECREF(old.at[i].values);
        Py_XDECREF(old.at[i].names);
        Py_XDECREF(old.at[i].method);
    }
    PyMem_Free(old.at);
}

int core_entries_visit(const struct core_entries *entries, visitproc visit, void *arg)
{
    size_t i;

    for (i = 0; i < entries->count; i++) {
        Py_VISIT(entries->at[i].values);
        Py_VISIT(entries->at[i].names);
        Py_VISIT(entries->at[i].method);
    }
    return 0;
}

/* The options as a new dict, without those of `but` (borrowed names, up to NULL). */
static PyObject *options_of(const struct core_entry *entry, PyObject *const *but)
{
    PyObject *dict;
    Py_ssize_t i;

    if (entry->names != NULL && PyDict_Check(entry->names)) {
        dict = PyDict_Copy(entry->names);
    } else {
        dict = PyDict_New();
        for (i = 0; dict != NULL && entry->names != NULL && i < PyTuple_GET_SIZE(entry->names);
             i++) {
            if (PyDict_SetItem(dict, PyTuple_GET_ITEM(entry->names, i),
                               PyTuple_GET_ITEM(entry->values, entry->nargs + i)) < 0)
                Py_CLEAR(dict);
        }
    }
    for (; dict != NULL && *but != NULL; but++) {
        int there = PyDict_Contains(dict, *but);

        if (there < 0 || (there == 1 && PyDict_DelItem(dict, *but) < 0))
            Py_CLEAR(dict);
    }
    return dict;
}

PyObject *core_entry_name_borrowed(const struct core_entry *entry)
{
    if (entry->method != NULL)
        return core_method_name_borrowed(entry->method);
    return PyTuple_GET_ITEM(entry->values, 0);
}

PyObject *core_entry_pair(const struct core_entry *entry)
{
    static PyObject *const none[] = { NULL };
    PyObject *args = PyTuple_GetSlice(entry->values, 0, entry->nargs), *options = NULL;
    PyObject *pair = NULL;

    if (entry->method != NULL) {
        Py_XDECREF(args);
        return core_method_spell(entry->method, &PyTuple_GET_ITEM(entry->values, 0),
                                  entry->nargs, entry->names);
    }
    if (args != NULL)
        options = options_of(entry, none);
    if (options != NULL)
        pair = PyTuple_Pack(2, args, options);
    Py_XDECREF(options);
    Py_XDECREF(args);
    return pair;
}

PyObject *core_entries_list(const struct core_entries *entries)
{
    PyObject *list = PyList_New(0);
    size_t i;

    for (i = 0; list != NULL && i < entries->count; i++) {
        PyObject *pair = core_entry_pair(&entries->at[i]);

        if (pair == NULL || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

/* ---- sending --------------------------------------------------------------------------- */

PyObject *core_batch_new(struct core_channel *channel, struct core_entries *entries,
                         struct rds_pipeline *pipeline)
{
    struct core_state *st = channel->st;
    struct core_batch *b;

    b = (struct core_batch *)st->native.batch_type->tp_alloc(st->native.batch_type, 0);
    if (b == NULL)
        return NULL;
    b->st = core_state_hold(st);
    b->channel = (struct core_channel *)Py_NewRef(channel);
    b->results = PyList_New(0);
    if (b->results == NULL) {
        Py_DECREF(b);
        return NULL;
    }
    b->phase = pipeline->transaction ? AT_MULTI : AT_RESULTS;
    b->expected = (uint32_t)entries->count;
    b->writes = pipeline->writes;
    b->pipeline = pipeline;
    b->entries = *entries;
    memset(entries, 0, sizeof *entries);
    return (PyObject *)b;
}

/* The replies are there, or a reason why they will not be. */
static int finish_batch(struct core_wake_ctx *w, struct core_bridge *bridge, struct core_job *job,
                        PyObject *fut)
{
    struct core_batch *b = (struct core_batch *)Py_NewRef(job->keep);
    PyObject *failure = NULL;
    int rc;

    if (job->rds.base.err == RT_OK) {
        b->pipeline = rds_pipeline_untie(&job->rds);
    } else {
        failure = core_reply_failure(b->channel, job->rds.base.err, &job->rds.reply);
        if (failure == NULL)
            failure = core_take_exception();
        b->unsent = !job->rds.maybe_run;
    }
    core_bridge_recycle(bridge, job);
    if (failure == NULL)
        rc = core_future_settle_result(w, fut, Py_None);
    else
        rc = core_future_settle_exception(w, fut, failure);
    Py_XDECREF(failure);
    Py_DECREF(b);
    Py_DECREF(fut);
    return rc;
}

static int send_batch(struct core_job *job)
{
    struct core_channel *channel = ((struct core_batch *)job->keep)->channel;
    struct core_bridge *bridge = job->bridge;
    int err = rds_channel_push(channel->rds, &job->rds);

    /* The job may be home already, but nobody drains before we return. */
    if (err == RT_OK)
        core_bridge_kick(bridge, channel);
    return err;
}

static PyObject *batch_send(PyObject *op, PyObject *unused)
{
    struct core_batch *b = (struct core_batch *)op;
    struct core_channel *channel = b->channel;
    PyObject *loop = NULL, *fut = NULL;
    uint64_t deadline = RT_NEVER;
    struct core_bridge *bridge;
    struct core_job *job;

    (void)unused;
    if (b->sent || b->pipeline == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a batch is sent once");
        return NULL;
    }
    if (core_channel_check_fork(channel) < 0)
        return NULL;
    bridge = core_bridge_of(channel->pool, &loop);
    if (bridge == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "no running event loop");
        return NULL;
    }
    if (channel->timeout != RT_NEVER)
        deadline = rt_after(rt_now(), channel->timeout);
    fut = core_future_new(channel->st, loop, bridge->debug);
    job = fut != NULL ? core_bridge_job(bridge, deadline) : NULL;
    if (job == NULL) {
        Py_XDECREF(fut);
        return NULL;
    }
    ((struct core_future *)fut)->owner = Py_NewRef(channel);
    rds_pipeline_tie(b->pipeline, &job->rds, channel->timeout);
    b->pipeline = NULL;
    b->sent = true;
    job->finish = finish_batch;
    job->send = send_batch;
    job->keep = Py_NewRef(op);
    if (core_bridge_send(bridge, job, fut) < 0)
        Py_CLEAR(fut);
    return fut;
}

/* ---- replies to objects ------------------------------------------------------------------ */

static bool is_response_error(struct core_batch *b, PyObject *object)
{
    return PyObject_TypeCheck(object, (PyTypeObject *)b->st->native.response_error);
}

/* An error reply: 0 when it is one of those that redis-py puts in the reply's
 * place; otherwise it is raised. */
static int check_error(struct core_batch *b, PyObject *error)
{
    if (is_response_error(b, error))
        return 0;
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    return -1;
}

/* MULTI (index -1) or a command was refused: remember it. */
static int refuse(struct core_batch *b, const struct rds_arena *arena, Py_ssize_t index)
{
    enum rds_type type = RDS_NIL;
    PyObject *error = core_reply_next(b->channel, arena, &b->pipeline->read_at, false, &type);
    PyObject *item = NULL;
    int rc = -1;

    if (error != NULL && (type == RDS_FAILURE || check_error(b, error) == 0))
        item = Py_BuildValue("(nO)", index, error);
    if (item != NULL && b->refused == NULL)
        b->refused = PyList_New(0);
    if (item != NULL && b->refused != NULL)
        rc = PyList_Append(b->refused, item);
    Py_XDECREF(item);
    Py_XDECREF(error);
    return rc;
}

static int convert_queued(struct core_batch *b, const struct rds_arena *arena)
{
    uint32_t *at = &b->pipeline->read_at;
    struct rds_node node = { .type = RDS_NIL };
    uint32_t peek = *at;

    (void)rds_reply_next(arena, &peek, &node);
    if (node.type == RDS_ERROR || node.type == RDS_FAILURE) {
        if (refuse(b, arena, b->phase == AT_MULTI ? -1 : (Py_ssize_t)b->at) < 0)
            return -1;
    } else {
        core_reply_skip(arena, at);
    }
    if (b->phase == AT_MULTI)
        b->phase = AT_QUEUED;
    else if (++b->at == b->entries.count)
        b->phase = AT_EXEC;
    return 0;
}

static int convert_exec(struct core_batch *b, const struct rds_arena *arena)
{
    uint32_t *at = &b->pipeline->read_at, peek = *at;
    struct rds_node node = { .type = RDS_NIL };
    enum rds_type type = RDS_NIL;

    (void)rds_reply_next(arena, &peek, &node);
    if (node.type == RDS_ARRAY) {
        *at = peek;
        b->at = 0;
        b->expected = node.len;
        b->phase = node.len > 0 ? AT_RESULTS : AT_END;
        return 0;
    }
    b->outcome = core_reply_next(b->channel, arena, at, false, &type);
    b->phase = AT_END;
    return b->outcome == NULL ? -1 : 0;
}

static int convert_result(struct core_batch *b, const struct rds_arena *arena)
{
    bool raw = !b->pipeline->transaction && b->entries.at[b->at].raw;
    enum rds_type type = RDS_NIL;
    PyObject *object = core_reply_next(b->channel, arena, &b->pipeline->read_at, raw, &type);
    int rc;

    if (object == NULL)
        return -1;
    if (type == RDS_ERROR || type == RDS_FAILURE) {
        b->failed = true;
        /* redis-py raises what is no ResponseError, but not from inside EXEC's array. */
        if (type == RDS_ERROR && !b->pipeline->transaction && check_error(b, object) < 0) {
            Py_DECREF(object);
            return -1;
        }
    }
    rc = PyList_Append(b->results, object);
    Py_DECREF(object);
    if (++b->at == b->expected)
        b->phase = AT_END;
    return rc;
}

/* convert(limit): whether all replies are converted now; so many at most. */
static PyObject *batch_convert(PyObject *op, PyObject *arg)
{
    struct core_batch *b = (struct core_batch *)op;
    size_t limit = PyLong_AsSize_t(arg);
    int rc = 0;

    if (limit == (size_t)-1 && PyErr_Occurred())
        return NULL;
    while (b->phase != AT_END && limit-- > 0 && rc == 0) {
        const struct rds_arena *arena = NULL;

        if (b->pipeline != NULL)
            arena = rds_pipeline_replies(b->pipeline);
        if (arena == NULL) {
            PyErr_SetString(PyExc_RuntimeError, "the batch has not been answered");
            return NULL;
        }
        switch (b->phase) {
        case AT_MULTI:
        case AT_QUEUED: rc = convert_queued(b, arena); break;
        case AT_EXEC: rc = convert_exec(b, arena); break;
        case AT_RESULTS: rc = convert_result(b, arena); break;
        case AT_END: break;
        }
    }
    if (rc < 0)
        return NULL;
    if (b->phase == AT_END) {
        rds_pipeline_free(b->pipeline);
        b->pipeline = NULL;
    }
    return PyBool_FromLong(b->phase == AT_END);
}

/* ---- response callbacks --------------------------------------------------------------------- */

/* A callback raised: with errors in place, a ResponseError takes the result's place. */
static PyObject *in_place(struct core_batch *b, bool errors_in_place)
{
    PyObject *error;

    if (!errors_in_place || !PyErr_ExceptionMatches(b->st->native.response_error))
        return NULL;
    error = core_take_exception();
    b->failed = true;
    return error;
}

static PyObject *apply_one(struct core_batch *b, const struct core_entry *entry,
                           PyObject *callback, PyObject *value, bool errors_in_place)
{
    struct core_native_state *native = &b->st->native;
    PyObject *const single[] = { native->str_keys, native->str_never_decode,
                                 native->str_empty_response, NULL };
    PyObject *const several[] = { native->str_keys, NULL };
    PyObject *options = NULL, *result;

    if (entry->names != NULL && entry->method == NULL) { /* a Method's are in the command */
        options = options_of(entry, errors_in_place ? single : several);
        if (options == NULL)
            return NULL;
    }
    result = core_apply_callback(b->st, callback, options, value);
    Py_XDECREF(options);
    return result != NULL ? result : in_place(b, errors_in_place);
}

static int set_result(struct core_batch *b, PyObject *value)
{
    if (b->applied >= (size_t)PyList_GET_SIZE(b->results)) {
        PyErr_SetString(PyExc_IndexError, "no result is waiting for its callback");
        return -1;
    }
    return PyList_SetItem(b->results, (Py_ssize_t)b->applied++, Py_NewRef(value));
}

/* apply(callbacks, errors_in_place, limit): True when every result has been through
 * its callback, False when the limit was reached; an awaitable that a callback gave,
 * whose outcome put() takes. */
static PyObject *batch_apply(PyObject *op, PyObject *args)
{
    struct core_batch *b = (struct core_batch *)op;
    PyObject *callbacks, *name = NULL, *callback = NULL, *result = NULL;
    Py_ssize_t limit;
    int errors_in_place;

    if (!PyArg_ParseTuple(args, "Opn:apply", &callbacks, &errors_in_place, &limit))
        return NULL;
    for (; b->applied < (size_t)PyList_GET_SIZE(b->results) && b->applied < b->entries.count;
         b->applied++) {
        const struct core_entry *entry = &b->entries.at[b->applied];
        PyObject *value = PyList_GET_ITEM(b->results, (Py_ssize_t)b->applied);
        PyObject *given = core_entry_name_borrowed(entry);

        if (limit-- <= 0) {
            result = Py_NewRef(Py_False);
            goto done;
        }
        if (PyExceptionInstance_Check(value))
            continue;
        if (given != name) { /* many of the same kind in a row look it up once */
            Py_CLEAR(callback);
            name = given;
            if (core_find_callback(callbacks, name, &callback) < 0)
                goto done;
        }
        if (callback == NULL)
            continue;
        Py_INCREF(value);
        result = apply_one(b, entry, callback, value, errors_in_place == 1);
        Py_DECREF(value);
        if (result == NULL || core_is_awaitable(result))
            goto done;
        if (PyList_SetItem(b->results, (Py_ssize_t)b->applied, result) < 0) {
            result = NULL;
            goto done;
        }
        result = NULL;
    }
    result = Py_NewRef(Py_True);
done:
    Py_XDECREF(callback);
    return result;
}

static PyObject *batch_put(PyObject *op, PyObject *value)
{
    struct core_batch *b = (struct core_batch *)op;

    if (PyExceptionInstance_Check(value))
        b->failed = true;
    if (set_result(b, value) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* ---- attributes ------------------------------------------------------------------------------- */

static PyObject *batch_commands(PyObject *op, PyObject *unused)
{
    (void)unused;
    return core_entries_list(&((struct core_batch *)op)->entries);
}

static PyObject *get_results(PyObject *op, void *unused)
{
    (void)unused;
    return Py_NewRef(((struct core_batch *)op)->results);
}

static PyObject *or_none(PyObject *object)
{
    return Py_NewRef(object != NULL ? object : Py_None);
}

static PyObject *get_refused(PyObject *op, void *unused)
{
    (void)unused;
    return or_none(((struct core_batch *)op)->refused);
}

static PyObject *get_outcome(PyObject *op, void *unused)
{
    (void)unused;
    return or_none(((struct core_batch *)op)->outcome);
}

static PyObject *get_executed(PyObject *op, void *unused)
{
    struct core_batch *b = (struct core_batch *)op;

    (void)unused;
    return PyBool_FromLong(b->phase == AT_END && b->outcome == NULL);
}

static PyObject *get_channel(PyObject *op, void *unused)
{
    (void)unused;
    return Py_NewRef(((struct core_batch *)op)->channel);
}

/* What was not sent has been tried for as long as it may be. */
static PyObject *get_retry(PyObject *op, void *unused)
{
    struct core_batch *b = (struct core_batch *)op;
    bool allowed = !b->unsent && (!b->writes || b->channel->retry_writes);

    (void)unused;
    return or_none(allowed ? b->channel->retry : NULL);
}

static PyObject *get_failed(PyObject *op, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((struct core_batch *)op)->failed);
}

static Py_ssize_t batch_length(PyObject *op)
{
    return (Py_ssize_t)((struct core_batch *)op)->entries.count;
}

/* ---- the type ----------------------------------------------------------------------------------- */

static int batch_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_batch *b = (struct core_batch *)op;
    int rc = core_entries_visit(&b->entries, visit, arg);

    if (rc != 0)
        return rc;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(b->channel);
    Py_VISIT(b->results);
    Py_VISIT(b->refused);
    Py_VISIT(b->outcome);
    return 0;
}

/* The channel stays: the job may be out. */
static int batch_clear(PyObject *op)
{
    struct core_batch *b = (struct core_batch *)op;

    core_entries_clear(&b->entries);
    Py_CLEAR(b->refused);
    Py_CLEAR(b->outcome);
    return 0;
}

static void batch_dealloc(PyObject *op)
{
    struct core_batch *b = (struct core_batch *)op;
    struct core_state *st = b->st;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    (void)batch_clear(op);
    Py_CLEAR(b->results);
    Py_CLEAR(b->channel);
    rds_pipeline_free(b->pipeline);
    type->tp_free(op);
    Py_DECREF(type);
    core_state_drop(st);
}

static PyMethodDef batch_methods[] = {
    { "send", batch_send, METH_NOARGS,
      "send($self, /)\n--\n\nSend it, once; the awaitable of its being answered." },
    { "convert", batch_convert, METH_O,
      "convert($self, limit, /)\n--\n\nConvert so many replies; whether all are." },
    { "apply", batch_apply, METH_VARARGS,
      "apply($self, callbacks, errors_in_place, limit, /)\n--\n\n"
      "Put results through their callbacks: True, when all are; False, when the limit is\n"
      "reached; or an awaitable, whose outcome is to be given to put()." },
    { "put", batch_put, METH_O, "put($self, value, /)\n--\n\nThe outcome of an awaitable." },
    { "commands", batch_commands, METH_NOARGS,
      "commands($self, /)\n--\n\nWhat was queued: a list of (args, options)." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef batch_getset[] = {
    { "results", get_results, NULL, "The replies, in order.", NULL },
    { "refused", get_refused, NULL, "(index, error) of what a transaction refused; None.", NULL },
    { "outcome", get_outcome, NULL, "What EXEC gave when it was no array.", NULL },
    { "executed", get_executed, NULL, "Whether there are results.", NULL },
    { "failed", get_failed, NULL, "Whether an exception is among the results.", NULL },
    { "channel", get_channel, NULL, "The channel it goes over.", NULL },
    { "retry", get_retry, NULL, "Who decides whether it is sent again after an error; None.",
      NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot batch_slots[] = {
    { Py_tp_doc, "A pipeline that was sent, and its replies." },
    { Py_tp_dealloc, batch_dealloc },
    { Py_tp_traverse, batch_traverse },
    { Py_tp_clear, batch_clear },
    { Py_tp_methods, batch_methods },
    { Py_tp_getset, batch_getset },
    { Py_sq_length, batch_length },
    { 0, NULL },
};

PyType_Spec core_batch_spec = {
    .name = "offloop._core.Batch",
    .basicsize = sizeof(struct core_batch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = batch_slots,
};
