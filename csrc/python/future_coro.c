/* The coroutine face: send, throw, close, __await__, __next__.
 *
 * __await__ gives the future itself, so an await costs no object.  The price:
 * what one awaiter does to "its" iterator, it does to the future of all.  So
 * send keeps nothing, close does nothing, and throw only raises what it was
 * given, with one exception, see core_future_throw. */
#include "future.h"

PyObject *
core_future_await(PyObject *op)
{
    return Py_NewRef(op);
}

PySendResult
core_future_am_send(PyObject *op, PyObject *Py_UNUSED(arg), PyObject **out)
{
    struct core_future *f = (struct core_future *)op;

    if (f->status != CORE_FUTURE_PENDING) {
        *out = core_future_outcome(f);
        return *out != NULL ? PYGEN_RETURN : PYGEN_ERROR;
    }
    *out = NULL;
    if (f->blocking) {
        /* Whoever got it last time did not take it for a future. */
        PyErr_SetString(PyExc_RuntimeError, "await wasn't used with future");
        return PYGEN_ERROR;
    }
    f->blocking = true;
    *out = Py_NewRef(op);
    return PYGEN_NEXT;
}

/* As an instance: PyErr_SetObject would unpack a tuple, and take an exception
 * for the instance itself. */
void
core_coro_return(PyObject *value)
{
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);

    if (stop != NULL)
        PyErr_SetObject(PyExc_StopIteration, stop);
    Py_XDECREF(stop);
}

PyObject *
core_future_send(PyObject *op, PyObject *arg)
{
    PyObject *out = NULL;

    if (core_future_am_send(op, arg, &out) == PYGEN_RETURN) {
        core_coro_return(out);
        Py_CLEAR(out);
    }
    return out;
}

PyObject *
core_future_next(PyObject *op)
{
    return core_future_send(op, Py_None);
}

/* Set the error that throw(type, value, tb) asks for. */
static void
set_thrown(PyObject *type, PyObject *value, PyObject *tb)
{
    if (tb != NULL && !PyTraceBack_Check(tb)) {
        PyErr_SetString(PyExc_TypeError,
                        "throw() third argument must be a traceback object");
        return;
    }
    Py_INCREF(type);
    Py_XINCREF(value);
    Py_XINCREF(tb);
    if (PyExceptionClass_Check(type)) {
        PyErr_NormalizeException(&type, &value, &tb);
    } else if (!PyExceptionInstance_Check(type)) {
        PyErr_Format(PyExc_TypeError,
                     "exceptions must be classes or instances deriving from "
                     "BaseException, not %s",
                     Py_TYPE(type)->tp_name);
        goto drop;
    } else if (value != NULL) {
        PyErr_SetString(PyExc_TypeError,
                        "instance exception may not have a separate value");
        goto drop;
    } else {
        value = type;
        type = Py_NewRef(PyExceptionInstance_Class(value));
        if (tb == NULL)
            tb = PyException_GetTraceback(value);
    }
    PyErr_Restore(type, value, tb);
    return;
drop:
    Py_DECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
}

/* A Task made of the future itself and cancelled before its first step throws
 * CancelledError into it.  Nothing else can stop the call it stands for, so it
 * is cancelled.  Had it been awaited by a Task, there would be a callback. */
static int
cancel_unawaited(struct core_future *f)
{
    PyObject *type = NULL, *value = NULL, *tb = NULL;
    PyObject *args = NULL, *msg = NULL;
    int rc = 0;

    if (f->status != CORE_FUTURE_PENDING || f->callback != NULL ||
        f->more != NULL || f->st->future.cancelled_error == NULL ||
        !PyErr_ExceptionMatches(f->st->future.cancelled_error))
        return 0;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (value != NULL)
        args = PyObject_GetAttrString(value, "args");
    if (args != NULL && PyTuple_Check(args) && PyTuple_GET_SIZE(args) > 0)
        msg = PyTuple_GET_ITEM(args, 0);
    PyErr_Clear();
    rc = core_future_cancel((PyObject *)f, msg);
    Py_XDECREF(args);
    if (rc < 0) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(tb);
        return -1;
    }
    PyErr_Restore(type, value, tb);
    return 0;
}

int
core_coro_throw(PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *value = NULL, *tb = NULL;

    if (nargs < 1 || nargs > 3) {
        PyErr_Format(PyExc_TypeError,
                     "throw expected 1 to 3 arguments, got %zd", nargs);
        return -1;
    }
#if PY_VERSION_HEX >= 0x030c0000
    if (nargs > 1 &&
        PyErr_WarnEx(PyExc_DeprecationWarning,
                     "the (type, exc, tb) signature of throw() is deprecated, "
                     "use the single-arg signature instead.",
                     1) < 0)
        return -1;
#endif
    if (nargs > 1 && args[1] != Py_None)
        value = args[1];
    if (nargs > 2 && args[2] != Py_None)
        tb = args[2];
    set_thrown(args[0], value, tb);
    return 0;
}

PyObject *
core_future_throw(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct core_future *f = (struct core_future *)op;

    if (core_coro_throw(args, nargs) < 0)
        return NULL;
    /* An awaiter that got the future and then this never took it over. */
    f->blocking = false;
    (void)cancel_unawaited(f);
    return NULL;
}

PyObject *
core_future_close(PyObject *Py_UNUSED(op), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_NONE;
}
