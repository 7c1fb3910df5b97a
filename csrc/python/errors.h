/* Errors of the native layers as Python exceptions, and what CPython's versions
 * name differently. */
#ifndef OFFLOOP_ERRORS_H
#define OFFLOOP_ERRORS_H

#include "../runtime/rt_err.h"
#include "core.h"

/* Set the exception for err: "<doing>: <what err means>".  Returns -1. */
int core_raise_err(struct core_state *st, int err, const char *doing);

/* The same for a call of a Python function that could not be sent.  Returns -1. */
int core_raise_call_err(struct core_state *st, int err);

/* Set the exception for a call whose time is over, before it began or while it was
 * running.  Returns -1. */
int core_raise_call_timeout(struct core_state *st, bool began);

/* Take the exception that is set, as an instance with its traceback.  A new
 * reference; never NULL. */
PyObject *core_take_exception(void);

/* What a weak reference refers to, borrowed, or NULL when it is gone.  Valid
 * while the GIL is held and no Python code runs. */
static inline PyObject *
core_weak_borrowed(PyObject *ref)
{
#if PY_VERSION_HEX >= 0x030d0000
    PyObject *object = NULL;

    if (PyWeakref_GetRef(ref, &object) != 1)
        return NULL;
    Py_DECREF(object); /* somebody else holds it, or it would be gone */
    return object;
#else
    PyObject *object = PyWeakref_GetObject(ref);

    return object == Py_None ? NULL : object;
#endif
}

#endif
