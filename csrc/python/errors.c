#include "errors.h"

#include <errno.h>

int
core_raise_err(struct core_state *st, int err, const char *doing)
{
    PyObject *type = st->native.connection_error;

    switch (err) {
    case RT_ENOMEM:
        PyErr_NoMemory();
        return -1;
    case RT_EINVAL:
        PyErr_Format(PyExc_ValueError, "%s: %s", doing, rt_strerror(err));
        return -1;
    case RT_ESYS:
        PyErr_Format(PyExc_OSError, "%s: %s", doing, strerror(errno));
        return -1;
    default:
        if (err == RT_ECLOSED || type == NULL)
            PyErr_Format(PyExc_RuntimeError, "%s: the pool is closed", doing);
        else
            PyErr_Format(type, "%s: %s", doing, rt_strerror(err));
        return -1;
    }
}

int
core_raise_call_err(struct core_state *st, int err)
{
    const struct core_native_state *native = &st->native;
    PyObject *closed = native->pool_closed_error, *full = native->pool_full_error;

    switch (err) {
    case RT_ECLOSED:
        PyErr_SetString(closed != NULL ? closed : PyExc_RuntimeError,
                        "the call was not executed: the pool is closed");
        return -1;
    case RT_EFULL:
        PyErr_SetString(full != NULL ? full : PyExc_RuntimeError,
                        "the call was not executed: the pool's queue is full; await some of the "
                        "calls under way, or make the pool with a larger queue");
        return -1;
    case RT_ETIMEOUT:
        return core_raise_call_timeout(st, false);
    default:
        return core_raise_err(st, err, "the call was not executed");
    }
}

int
core_raise_call_timeout(struct core_state *st, bool began)
{
    PyObject *type = st->native.call_timeout_error, *error;
    const char *text = began ? "the call timed out while it was running: it goes on, and what it "
                               "returns is dropped"
                             : "the call timed out before it began: it was not executed";

    if (type == NULL) {
        PyErr_SetString(PyExc_TimeoutError, text);
        return -1;
    }
    error = PyObject_CallFunction(type, "sO", text, began ? Py_True : Py_False);
    if (error != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
    return -1;
}

PyObject *
core_take_exception(void)
{
    PyObject *type = NULL, *value = NULL, *tb = NULL;

    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL)
        (void)PyException_SetTraceback(value, tb);
    Py_XDECREF(type);
    Py_XDECREF(tb);
    return value;
}
