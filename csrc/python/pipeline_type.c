#include "pipeline_type.h"

#include "args.h"
#include "observed.h"

static struct core_pipeline *pipeline_of(PyObject *op)
{
    return (struct core_pipeline *)op;
}

/* ---- queueing ----------------------------------------------------------------------- */

static void drop_wire(struct core_pipeline *p)
{
    rds_pipeline_free(p->wire);
    p->wire = NULL;
    Py_CLEAR(p->encoded_by);
}

static void forget(struct core_pipeline *p)
{
    drop_wire(p);
    core_entries_clear(&p->entries);
    Py_CLEAR(p->stack);
    Py_CLEAR(p->error);
    p->leased = false;
}

/* The channel whose encoding holds.  Where there is none, or none can be made, the
 * pipeline goes redis-py's way, which tells why when it is executed. */
static bool prepare(struct core_pipeline *p)
{
    int open = core_client_open(&p->client);

    if (open < 0) {
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            return false;
        PyErr_Clear();
    }
    if (open <= 0) {
        p->leased = true;
        return true;
    }
    if (p->wire == NULL && rds_pipeline_new(&p->wire) != RT_OK) {
        PyErr_NoMemory();
        return false;
    }
    if (p->encoded_by == NULL)
        p->encoded_by = (struct core_channel *)Py_NewRef(p->client.channel);
    return true;
}

/* One more command into the buffer; known: its description, or NULL, and then its
 * name is the first argument.  What cannot be encoded is told by execute(), as
 * redis-py does. */
static int encode(struct core_pipeline *p, PyObject *known, PyObject *const *args,
                  Py_ssize_t nargs)
{
    int shared;

    if (p->leased || p->error != NULL)
        return 0;
    if (p->encoded_by == NULL && (!prepare(p) || p->leased))
        return p->leased ? 0 : -1;
    if (known != NULL)
        shared = core_args_append_known(p->encoded_by, p->wire, known, args, nargs);
    else
        shared = core_args_append(p->encoded_by, p->wire, args, nargs);
    if (shared < 0) {
        PyObject *type = NULL, *traceback = NULL;

        PyErr_Fetch(&type, &p->error, &traceback);
        PyErr_NormalizeException(&type, &p->error, &traceback);
        Py_XDECREF(type);
        Py_XDECREF(traceback);
    } else if (shared == 0) {
        p->leased = true;
        drop_wire(p);
    }
    return 0;
}

/* What the options say of how a command goes. */
static void look_at_option(struct core_pipeline *p, struct core_entry *entry, PyObject *name)
{
    struct core_native_state *native = &p->client.st->native;

    if (name == native->str_keys)
        return;
    if (!PyUnicode_Check(name))
        return;
    if (PyUnicode_Compare(name, native->str_never_decode) == 0)
        entry->raw = true;
    else if (PyUnicode_Compare(name, native->str_empty_response) == 0)
        p->leased = true; /* such a command may not be sent at all: redis-py knows */
}

/* Remember a call as it was made. */
static struct core_entry *remember(struct core_pipeline *p, PyObject *const *args,
                                   Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t i, names = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames), total = nargs + names;
    PyObject *values = PyTuple_New(total);
    struct core_entry *entry;

    if (values == NULL)
        return NULL;
    for (i = 0; i < total; i++)
        PyTuple_SET_ITEM(values, i, Py_NewRef(args[i]));
    entry = core_entries_add(&p->entries);
    if (entry == NULL) {
        Py_DECREF(values);
        return NULL;
    }
    entry->values = values;
    entry->names = names > 0 ? Py_NewRef(kwnames) : NULL;
    entry->nargs = (uint32_t)nargs;
    return entry;
}

static int queue(struct core_pipeline *p, PyObject *const *args, Py_ssize_t nargs,
                 PyObject *kwnames)
{
    Py_ssize_t i, names = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    struct core_entry *entry = remember(p, args, nargs, kwnames);

    if (entry == NULL)
        return -1;
    for (i = 0; i < names; i++)
        look_at_option(p, entry, PyTuple_GET_ITEM(kwnames, i));
    if (p->stack != NULL) {
        /* The list is the truth; the entry served to make its item. */
        PyObject *pair = core_entry_pair(entry);
        int rc = pair == NULL ? -1 : PyList_Append(p->stack, pair);

        Py_XDECREF(pair);
        core_entries_clear(&p->entries);
        return rc;
    }
    return encode(p, NULL, args, nargs);
}

bool core_pipeline_queues(const struct core_pipeline *p)
{
    return p->stack == NULL && !p->queues_itself && (!p->watching || p->explicit_transaction);
}

PyObject *core_pipeline_queue(struct core_client *client, const struct core_given *given,
                              PyObject *known, PyObject *const *args, Py_ssize_t nargs)
{
    struct core_pipeline *p = (struct core_pipeline *)client;
    struct core_entry *entry = remember(p, given->values, given->nargs, given->names);

    if (entry == NULL)
        return NULL;
    entry->method = Py_NewRef(given->method);
    return encode(p, known, args, nargs) < 0 ? NULL : Py_NewRef((PyObject *)p);
}

static PyObject *pipeline_execute_command(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                                          PyObject *kwnames)
{
    return queue(pipeline_of(op), args, nargs, kwnames) < 0 ? NULL : Py_NewRef(op);
}

static bool is_watch(PyObject *name)
{
    return PyUnicode_Check(name) && PyUnicode_GET_LENGTH(name) == 5 &&
           PyUnicode_CompareWithASCIIString(name, "WATCH") == 0;
}

static PyObject *execute_command(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames)
{
    struct core_pipeline *p = pipeline_of(op);
    struct core_native_state *native = &p->client.st->native;

    if (nargs == 0) {
        PyErr_SetString(PyExc_IndexError, "tuple index out of range");
        return NULL;
    }
    if ((p->watching || is_watch(args[0])) && !p->explicit_transaction)
        return core_call_instead(op, native->str_immediate_execute, args, nargs, kwnames);
    if (p->queues_itself)
        return core_call_instead(op, native->str_pipeline_execute, args, nargs, kwnames);
    return queue(p, args, nargs, kwnames) < 0 ? NULL : Py_NewRef(op);
}

/* ---- sending ----------------------------------------------------------------------------- */

/* Make entries of a list, the program's own or one of ours.  1, 0: it is not as redis-py would have
 * it, who may say what is wrong; -1: an exception is set. */
static int entries_of_list(struct core_pipeline *p, PyObject *list)
{
    Py_ssize_t i, k;

    core_entries_clear(&p->entries);
    for (i = 0; i < PyList_GET_SIZE(list); i++) {
        PyObject *pair = PyList_GET_ITEM(list, i), *args, *options;
        struct core_entry *entry;
        PyObject *name, *value;

        if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2)
            return 0;
        args = PyTuple_GET_ITEM(pair, 0);
        options = PyTuple_GET_ITEM(pair, 1);
        if (!PyTuple_Check(args) || PyTuple_GET_SIZE(args) == 0 || !PyDict_Check(options))
            return 0;
        entry = core_entries_add(&p->entries);
        if (entry == NULL)
            return -1;
        entry->values = Py_NewRef(args);
        entry->names = Py_NewRef(options);
        entry->nargs = (uint32_t)PyTuple_GET_SIZE(args);
        for (k = 0; PyDict_Next(options, &k, &name, &value);)
            look_at_option(p, entry, name);
    }
    return 1;
}

/* Encode all that is queued, because it was not yet, or for another encoding. */
static int encode_all(struct core_pipeline *p)
{
    PyObject *list = p->stack != NULL ? Py_NewRef(p->stack) : core_entries_list(&p->entries);
    size_t i;
    int known;

    if (list == NULL)
        return -1;
    drop_wire(p);
    Py_CLEAR(p->error);
    p->leased = false;
    known = entries_of_list(p, list);
    Py_DECREF(list);
    if (known <= 0) {
        p->leased = known == 0;
        return known;
    }
    for (i = 0; i < p->entries.count; i++) {
        const struct core_entry *entry = &p->entries.at[i];

        if (encode(p, NULL, &PyTuple_GET_ITEM(entry->values, 0), entry->nargs) < 0)
            return -1;
    }
    return 0;
}

/* _take(transaction): what is queued as a Batch, taken off; None: redis-py's way,
 * and everything as it was. */
static PyObject *pipeline_take(PyObject *op, PyObject *arg)
{
    struct core_pipeline *p = pipeline_of(op);
    int transaction = PyObject_IsTrue(arg), open, observed;
    PyObject *batch = NULL;

    if (transaction < 0)
        return NULL;
    if (p->leased && p->stack == NULL)
        Py_RETURN_NONE;
    open = core_client_open(&p->client);
    observed = open > 0 ? core_observed(p->client.st, false) : 0;
    if (open < 0 || observed < 0)
        return NULL;
    if (open == 0 || observed > 0)
        Py_RETURN_NONE; /* redis-py's way is measured by redis-py's metrics */
    if ((p->stack != NULL || p->client.channel != p->encoded_by) && encode_all(p) < 0)
        goto done;
    if (p->leased) {
        batch = Py_NewRef(Py_None);
        goto done;
    }
    if (p->error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(p->error), p->error);
        goto done;
    }
    if (p->entries.count == 0 || p->wire == NULL) {
        batch = Py_NewRef(Py_None);
        goto done;
    }
    if (p->entries.count > UINT32_MAX / 2 ||
        rds_pipeline_seal(p->wire, transaction == 1) != RT_OK) {
        PyErr_NoMemory();
        goto done;
    }
    batch = core_batch_new(p->client.channel, &p->entries, p->wire);
    if (batch != NULL)
        p->wire = NULL;
    drop_wire(p);
done:
    if (p->stack != NULL)
        core_entries_clear(&p->entries);
    return batch;
}

/* ---- what redis-py's own attributes show ---------------------------------------------------- */

static PyObject *get_stack(PyObject *op, void *unused)
{
    struct core_pipeline *p = pipeline_of(op);

    (void)unused;
    if (p->stack == NULL) {
        p->stack = core_entries_list(&p->entries);
        if (p->stack == NULL)
            return NULL;
        drop_wire(p);
        core_entries_clear(&p->entries);
    }
    return Py_NewRef(p->stack);
}

static int set_stack(PyObject *op, PyObject *value, void *unused)
{
    struct core_pipeline *p = pipeline_of(op);

    (void)unused;
    if (value == NULL || !PyList_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "command_stack must be a list");
        return -1;
    }
    Py_INCREF(value);
    forget(p);
    p->stack = value;
    return 0;
}

static Py_ssize_t pipeline_length(PyObject *op)
{
    struct core_pipeline *p = pipeline_of(op);

    return p->stack != NULL ? PyList_GET_SIZE(p->stack) : (Py_ssize_t)p->entries.count;
}

/* _clear(): nothing is queued any more. */
static PyObject *pipeline_clear_commands(PyObject *op, PyObject *unused)
{
    (void)unused;
    forget(pipeline_of(op));
    Py_RETURN_NONE;
}

#define FLAG(name)                                                                              \
    static PyObject *get_##name(PyObject *op, void *unused)                                     \
    {                                                                                           \
        (void)unused;                                                                           \
        return PyBool_FromLong(pipeline_of(op)->name);                                          \
    }                                                                                           \
    static int set_##name(PyObject *op, PyObject *value, void *unused)                          \
    {                                                                                           \
        int truth = value == NULL ? 0 : PyObject_IsTrue(value);                                 \
                                                                                                \
        (void)unused;                                                                           \
        pipeline_of(op)->name = truth > 0;                                                      \
        return truth < 0 ? -1 : 0;                                                              \
    }
FLAG(watching)
FLAG(explicit_transaction)
FLAG(queues_itself)
#undef FLAG

/* ---- the type ----------------------------------------------------------------------------------- */

static int pipeline_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_pipeline *p = pipeline_of(op);
    int rc = core_entries_visit(&p->entries, visit, arg);

    if (rc != 0)
        return rc;
    Py_VISIT(p->encoded_by);
    Py_VISIT(p->stack);
    Py_VISIT(p->error);
    return core_client_traverse(op, visit, arg);
}

static int pipeline_clear(PyObject *op)
{
    forget(pipeline_of(op));
    return core_client_clear(op);
}

static void pipeline_dealloc(PyObject *op)
{
    PyObject_GC_UnTrack(op);
    forget(pipeline_of(op));
    core_client_dealloc(op);
}

static PyMethodDef pipeline_methods[] = {
    { "execute_command", (PyCFunction)(void (*)(void))execute_command,
      METH_FASTCALL | METH_KEYWORDS,
      "execute_command($self, /, *args, **options)\n--\n\n"
      "Queue a command and return the pipeline; after watch() and before multi(), send it." },
    { "pipeline_execute_command", (PyCFunction)(void (*)(void))pipeline_execute_command,
      METH_FASTCALL | METH_KEYWORDS,
      "pipeline_execute_command($self, /, *args, **options)\n--\n\n"
      "Queue a command to be sent by execute(); returns the pipeline." },
    { "_take", pipeline_take, METH_O,
      "_take($self, transaction, /)\n--\n\nWhat is queued, as a Batch; None: redis-py's way." },
    { "_clear", pipeline_clear_commands, METH_NOARGS,
      "_clear($self, /)\n--\n\nForget what is queued." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef pipeline_getset[] = {
    { "command_stack", get_stack, set_stack, "What is queued: a list of (args, options).", NULL },
    { "watching", get_watching, set_watching, "Whether keys are watched.", NULL },
    { "explicit_transaction", get_explicit_transaction, set_explicit_transaction,
      "Whether multi() was called.", NULL },
    { "_queues_itself", get_queues_itself, set_queues_itself,
      "Whether pipeline_execute_command is a subclass's own.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot pipeline_slots[] = {
    { Py_tp_doc, "The native half of offloop.redis.client.Pipeline." },
    { Py_tp_dealloc, pipeline_dealloc },
    { Py_tp_traverse, pipeline_traverse },
    { Py_tp_clear, pipeline_clear },
    { Py_tp_methods, pipeline_methods },
    { Py_tp_getset, pipeline_getset },
    { Py_sq_length, pipeline_length },
    { 0, NULL },
};

PyType_Spec core_pipeline_spec = {
    .name = "offloop._core.Pipeline",
    .basicsize = sizeof(struct core_pipeline),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = pipeline_slots,
};
