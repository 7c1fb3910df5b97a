#include "client_type.h"

#include "bridge.h"
#include "command.h"
#include "entry.h"
#include "observed.h"

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

/* A command is made, now.  Whether metrics are on: as core_observed(). */
static int make_call(struct core_client *client, struct core_bridge *bridge, struct core_command *call)
{
    call->now = bridge->clock = rt_now();
    bridge->ticked = true;
    return bridge->outstanding > 0 ? core_observed_at(client->st, call->now)
                                   : core_observed(client->st, false);
}

static PyObject *execute_command(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames)
{
    struct core_client *client = (struct core_client *)op;
    struct core_native_state *native = &client->st->native;
    PyObject *loop = NULL, *result;
    struct core_command call = { .args = args, .nargs = nargs, .kwnames = kwnames };
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
    result = core_command_send(client, bridge, loop, &call, &leased);
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
    struct core_command call = { .known = known, .name = name, .args = args, .nargs = nargs };
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
    return core_command_send(client, bridge, loop, &call, declined);
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
