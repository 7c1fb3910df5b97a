/* Calls of Python functions as a part of the module: the types, and what offloop.pool
 * gives. */
#include "call.h"
#include "caller_type.h"
#include "host.h"

/* Name for name, so that visiting and clearing them cannot forget one. */
#define OBJECTS(X)                                                                 \
    X(caller_type) X(lane_type) X(executor_future) X(adopt) X(forget) X(deferred) \
    X(call_timeout_error) X(pool_closed_error) X(pool_full_error) X(broken_pool_error)
#define STRINGS(X)                                                                 \
    X(str_call, "call")                                                           \
    X(str_notify, "set_running_or_notify_cancel")                                 \
    X(str_set_result, "set_result")                                               \
    X(str_set_exception, "set_exception")

/* _setup_calls(executor_future=..., ...). */
static PyObject *setup_calls(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "executor_future",   "adopt",           "forget",
                             "deferred",          "timeout_error",   "closed_error",
                             "full_error",        "broken_error",    NULL };
    struct core_native_state *n = &core_state_of(module)->native;
    PyObject *o[8];

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$OOOOOOOO:_setup_calls", names, &o[0], &o[1],
                                     &o[2], &o[3], &o[4], &o[5], &o[6], &o[7]))
        return NULL;
    Py_XSETREF(n->executor_future, Py_NewRef(o[0]));
    Py_XSETREF(n->adopt, Py_NewRef(o[1]));
    Py_XSETREF(n->forget, Py_NewRef(o[2]));
    Py_XSETREF(n->deferred, Py_NewRef(o[3]));
    Py_XSETREF(n->call_timeout_error, Py_NewRef(o[4]));
    Py_XSETREF(n->pool_closed_error, Py_NewRef(o[5]));
    Py_XSETREF(n->pool_full_error, Py_NewRef(o[6]));
    Py_XSETREF(n->broken_pool_error, Py_NewRef(o[7]));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    { "_setup_calls", (PyCFunction)(void (*)(void))setup_calls, METH_VARARGS | METH_KEYWORDS,
      "Tell the pool what its calls need of Python." },
    { "_quit", core_host_quit, METH_O,
      "_quit(grace, /)\n--\n\n"
      "Finish what was submitted to executors; let no call begin, and wait grace seconds." },
    { "_forked", core_host_forked, METH_NOARGS,
      "_forked()\n--\n\nThis process is a forked child: no worker is in it." },
    { NULL, NULL, 0, NULL },
};

static int add_type(PyObject *module, PyType_Spec *spec, const char *name, PyTypeObject **out)
{
    *out = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *out == NULL ? -1 : PyModule_AddObjectRef(module, name, (PyObject *)*out);
}

static int call_register(PyObject *module, struct core_state *st)
{
    struct core_native_state *n = &st->native;

#define INTERN(field, text)                                                        \
    n->field = PyUnicode_InternFromString(text);                                  \
    if (n->field == NULL)                                                         \
        return -1;
    STRINGS(INTERN)
#undef INTERN
    n->host = core_host_new();
    if (n->host == NULL || add_type(module, &core_caller_spec, "Caller", &n->caller_type) < 0 ||
        add_type(module, &core_lane_spec, "Lane", &n->lane_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}

static int call_visit(struct core_state *st, visitproc visit, void *arg)
{
    struct core_native_state *n = &st->native;

#define VISIT(field) Py_VISIT(n->field);
    OBJECTS(VISIT)
#undef VISIT
    return 0;
}

/* The strings stay, as the names of core.h do; what runs late uses them. */
static void call_clear(struct core_state *st)
{
    struct core_native_state *n = &st->native;

#define CLEAR(field) Py_CLEAR(n->field);
    OBJECTS(CLEAR)
#undef CLEAR
    core_call_drop_free_list(n);
}

void core_call_state_fini(struct core_native_state *n)
{
#define CLEAR(field, text) Py_CLEAR(n->field);
    STRINGS(CLEAR)
#undef CLEAR
    core_call_drop_free_list(n);
    core_host_drop(n->host);
    n->host = NULL;
}

const struct core_part core_call_part = {
    .register_part = call_register,
    .visit = call_visit,
    .clear = call_clear,
};
