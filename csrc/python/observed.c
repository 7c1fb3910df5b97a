#include "observed.h"

#include "../runtime/rt_base.h"

#define LOOK_EVERY RT_MS

/* The value of a module's name, borrowed; NULL for None or nothing. */
static PyObject *value_of(PyObject *module, PyObject *name)
{
    PyObject *value = PyDict_GetItemWithError(PyModule_GetDict(module), name);

    return value == Py_None ? NULL : value;
}

static int look(struct core_native_state *native)
{
    PyObject *instance, *provider;
    int on;

    if (value_of(native->recorder, native->str_collector) != NULL)
        return 1;
    if (PyErr_Occurred())
        return -1;
    instance = value_of(native->providers, native->str_instance);
    if (instance == NULL)
        return PyErr_Occurred() ? -1 : 0;
    provider = PyObject_GetAttr(instance, native->str_provider);
    if (provider == NULL) {
        PyErr_Clear(); /* another version of redis-py: it has no such thing */
        return 0;
    }
    on = provider != Py_None;
    Py_DECREF(provider);
    return on;
}

int core_observed_at(struct core_state *st, uint64_t now)
{
    struct core_native_state *native = &st->native;
    int on;

    if (now - native->looked < LOOK_EVERY)
        return native->observed;
    native->looked = now;
    on = look(native);
    native->observed = on > 0;
    return on;
}

int core_observed(struct core_state *st, bool busy)
{
    struct core_native_state *native = &st->native;
    int on;

    if (busy)
        return core_observed_at(st, rt_now());
    on = look(native);
    native->observed = on > 0;
    return on;
}
