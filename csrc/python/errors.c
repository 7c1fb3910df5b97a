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
