/* The future itself: its life, its one state change, its callbacks. */
#include "future.h"

#include <string.h>

/* ---- life --------------------------------------------------------------- */

PyObject *
core_future_new(struct core_state *st, PyObject *loop, bool debug)
{
    struct core_future_state *fs = &st->future;
    struct core_future *f = NULL;

    if (fs->type == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "offloop._core is being unloaded");
        return NULL;
    }
    if (fs->n_free > 0) {
        f = fs->free[--fs->n_free];
        (void)PyObject_Init((PyObject *)f, fs->type);
    } else {
        f = PyObject_GC_New(struct core_future, fs->type);
        if (f == NULL)
            return NULL;
        memset((char *)f + sizeof(PyObject), 0, sizeof *f - sizeof(PyObject));
    }
    f->st = core_state_hold(st);
    f->loop = Py_NewRef(loop);
    f->status = CORE_FUTURE_PENDING;
    f->blocking = false;
    f->log_tb = false;
    PyObject_GC_Track((PyObject *)f);

    if (debug) {
        f->source_tb = PyObject_CallNoArgs(fs->extract_stack);
        if (f->source_tb == NULL)
            Py_CLEAR(f);
    }
    return (PyObject *)f;
}

int
core_future_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_future *f = (struct core_future *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(f->loop);
    Py_VISIT(f->callback);
    Py_VISIT(f->context);
    Py_VISIT(f->more);
    Py_VISIT(f->result);
    Py_VISIT(f->exception);
    Py_VISIT(f->exception_tb);
    Py_VISIT(f->cancel_msg);
    Py_VISIT(f->source_tb);
    Py_VISIT(f->reply_callback);
    Py_VISIT(f->reply_options);
    Py_VISIT(f->owner);
    return 0;
}

int
core_future_tp_clear(PyObject *op)
{
    struct core_future *f = (struct core_future *)op;

    Py_CLEAR(f->loop);
    Py_CLEAR(f->callback);
    Py_CLEAR(f->context);
    Py_CLEAR(f->more);
    Py_CLEAR(f->result);
    Py_CLEAR(f->exception);
    Py_CLEAR(f->exception_tb);
    Py_CLEAR(f->cancel_msg);
    Py_CLEAR(f->source_tb);
    Py_CLEAR(f->reply_callback);
    Py_CLEAR(f->reply_options);
    Py_CLEAR(f->owner);
    return 0;
}

void
core_future_dealloc(PyObject *op)
{
    struct core_future *f = (struct core_future *)op;
    struct core_state *st = f->st;
    struct core_future_state *fs = &st->future;
    PyTypeObject *type = Py_TYPE(op);

    /* The finalizer has something to do in this one case only. */
    if (f->log_tb && PyObject_CallFinalizerFromDealloc(op) < 0)
        return;
    PyObject_GC_UnTrack(op);
    if (f->weakrefs != NULL)
        PyObject_ClearWeakRefs(op);
    f->link = (struct core_future_link){NULL, NULL};
    (void)core_future_tp_clear(op);

    /* The mark "finalized" would stay on a reused object, and its own
     * exception never be logged. */
    if (fs->n_free < fs->max_free && !PyObject_GC_IsFinalized(op))
        fs->free[fs->n_free++] = f;
    else
        PyObject_GC_Del(op);
    Py_DECREF(type);
    core_state_drop(st);
}

void
core_future_drop_free_list(struct core_future_state *fs)
{
    fs->max_free = 0;
    while (fs->n_free > 0)
        PyObject_GC_Del(fs->free[--fs->n_free]);
}

void
core_future_finalize(PyObject *op)
{
    struct core_future *f = (struct core_future *)op;
    const struct core_names *names = &f->st->names;
    PyObject *type = NULL, *value = NULL, *tb = NULL;
    PyObject *message = NULL, *context = NULL, *done = NULL;

    if (!f->log_tb || f->loop == NULL || f->exception == NULL)
        return;
    f->log_tb = false;
    PyErr_Fetch(&type, &value, &tb);

    message = PyUnicode_FromString("Future exception was never retrieved");
    context = PyDict_New();
    if (message == NULL || context == NULL ||
        PyDict_SetItem(context, names->message, message) < 0 ||
        PyDict_SetItem(context, names->exception, f->exception) < 0 ||
        PyDict_SetItem(context, names->future, op) < 0)
        goto done;
    if (f->source_tb != NULL &&
        PyDict_SetItem(context, names->source_traceback, f->source_tb) < 0)
        goto done;
    done = PyObject_CallMethodOneArg(f->loop, names->call_exception_handler,
                                     context);
done:
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(op);
    Py_XDECREF(message);
    Py_XDECREF(context);
    Py_XDECREF(done);
    PyErr_Restore(type, value, tb);
}

/* ---- the one state change ----------------------------------------------- */

void
core_future_finish(struct core_future *f, enum core_future_status to,
                   PyObject *result, PyObject *exception)
{
    struct core_future_link link = f->link;
    PyObject *callback = f->reply_callback;
    PyObject *options = f->reply_options;
    PyObject *owner = f->owner;

    assert(f->status == CORE_FUTURE_PENDING);
    assert(to != CORE_FUTURE_PENDING);
    f->status = to;
    f->link = (struct core_future_link){NULL, NULL};
    f->reply_callback = NULL;
    f->reply_options = NULL;
    f->result = Py_XNewRef(result);
    f->exception = Py_XNewRef(exception);
    if (exception != NULL) {
        f->exception_tb = PyException_GetTraceback(exception);
        /* Before any waiter runs: its result() takes the mark off again. */
        f->log_tb = true;
    }

    /* The owner is there over the hook, which works on what it owns. */
    if (to == CORE_FUTURE_CANCELLED && link.cancelled != NULL)
        link.cancelled(f->st, (PyObject *)f, link.job);
    f->owner = NULL;

    /* Last, as dropping them may run any code: it must see a done future. */
    Py_XDECREF(callback);
    Py_XDECREF(options);
    Py_XDECREF(owner);
}

void
core_future_invalid_state(struct core_future *f, const char *message)
{
    PyObject *type = f->st->future.invalid_state_error;

    PyErr_SetString(type != NULL ? type : PyExc_RuntimeError, message);
}

int
core_future_set_result(PyObject *fut, PyObject *value)
{
    struct core_future *f = (struct core_future *)fut;

    if (f->status != CORE_FUTURE_PENDING) {
        core_future_invalid_state(f, "invalid state");
        return -1;
    }
    core_future_finish(f, CORE_FUTURE_FINISHED, value, NULL);
    return core_future_schedule(f);
}

int
core_future_set_exception_obj(PyObject *fut, PyObject *exc)
{
    struct core_future *f = (struct core_future *)fut;
    PyObject *value = NULL;
    int rc = -1;

    if (f->status == CORE_FUTURE_PENDING)
        value = core_future_exception_of(f, exc);
    else
        core_future_invalid_state(f, "invalid state");
    if (value == NULL)
        goto done;
    /* A class was called above, which may have settled this very future. */
    if (f->status != CORE_FUTURE_PENDING) {
        core_future_invalid_state(f, "invalid state");
        goto done;
    }
    core_future_finish(f, CORE_FUTURE_FINISHED, NULL, value);
    rc = core_future_schedule(f);
    /* The caller is told now, and a closed loop has nobody left to tell. */
    if (rc < 0)
        f->log_tb = false;
done:
    Py_XDECREF(value);
    return rc;
}

int
core_future_cancel(PyObject *fut, PyObject *msg)
{
    struct core_future *f = (struct core_future *)fut;

    f->log_tb = false;
    if (f->status != CORE_FUTURE_PENDING)
        return 0;
    f->cancel_msg = Py_XNewRef(msg);
    core_future_finish(f, CORE_FUTURE_CANCELLED, NULL, NULL);
    return core_future_schedule(f) < 0 ? -1 : 1;
}

/* ---- outcome ------------------------------------------------------------ */

/* StopIteration in a future: some versions refuse it (TypeError), later ones
 * wrap it (RuntimeError).  Ask asyncio's own Future, so that both agree. */
static PyObject *
stop_iteration_as_asyncio_has_it(struct core_future *f, PyObject *exc)
{
    PyObject *type = f->st->future.asyncio_future;
    PyObject *args = NULL, *kwargs = NULL, *fut = NULL, *none = NULL;
    PyObject *seen = NULL;

    if (type == NULL || f->loop == NULL) {
        PyErr_SetString(PyExc_TypeError, "StopIteration in a future");
        return NULL;
    }
    args = PyTuple_New(0);
    kwargs = Py_BuildValue("{s:O}", "loop", f->loop);
    if (args != NULL && kwargs != NULL)
        fut = PyObject_Call(type, args, kwargs);
    if (fut != NULL)
        none = PyObject_CallMethod(fut, "set_exception", "O", exc);
    if (none != NULL)
        seen = PyObject_CallMethod(fut, "exception", NULL);
    Py_XDECREF(none);
    Py_XDECREF(fut);
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    return seen;
}

PyObject *
core_future_exception_of(struct core_future *f, PyObject *exc)
{
    PyObject *value = NULL, *seen = NULL;

    value = PyExceptionClass_Check(exc) ? PyObject_CallNoArgs(exc)
                                        : Py_NewRef(exc);
    if (value == NULL)
        return NULL;
    if (!PyExceptionInstance_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "invalid exception object");
        Py_CLEAR(value);
    } else if (PyErr_GivenExceptionMatches(value, PyExc_StopIteration)) {
        seen = stop_iteration_as_asyncio_has_it(f, value);
        Py_SETREF(value, seen);
    }
    return value;
}

PyObject *
core_future_cancelled_error(struct core_future *f)
{
    PyObject *type = f->st->future.cancelled_error;

    if (type == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "offloop._core is being unloaded");
        return NULL;
    }
    if (f->cancel_msg == NULL || f->cancel_msg == Py_None)
        return PyObject_CallNoArgs(type);
    return PyObject_CallOneArg(type, f->cancel_msg);
}

PyObject *
core_future_outcome(struct core_future *f)
{
    PyObject *exc = NULL;

    if (f->status == CORE_FUTURE_PENDING) {
        core_future_invalid_state(f, "Result is not set.");
        return NULL;
    }
    if (f->status == CORE_FUTURE_CANCELLED) {
        exc = core_future_cancelled_error(f);
        if (exc != NULL)
            PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_XDECREF(exc);
        return NULL;
    }
    f->log_tb = false;
    if (f->exception == NULL) {
        /* NULL only once the collector has cleared a dying future. */
        return Py_NewRef(f->result != NULL ? f->result : Py_None);
    }
    /* The same instance is raised at every await; without this its traceback
     * would grow by each of them. */
    exc = Py_NewRef(f->exception);
    if (PyException_SetTraceback(
            exc, f->exception_tb != NULL ? f->exception_tb : Py_None) == 0)
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    Py_DECREF(exc);
    return NULL;
}
