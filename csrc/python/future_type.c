/* What Python sees of a future: its methods, attributes and type. */
#include "future.h"

#include <structmember.h>

/* Take one keyword argument of a fastcall: *out stays as it is if absent.
 * 0, or -1 with TypeError set. */
static int
keyword_argument(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                 PyObject *name, const char *function, PyObject **out)
{
    Py_ssize_t n = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0;

    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *kw = PyTuple_GET_ITEM(kwnames, i);

        if (kw != name && PyUnicode_Compare(kw, name) != 0) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_TypeError,
                             "'%U' is an invalid keyword argument for %s()",
                             kw, function);
            return -1;
        }
        *out = args[nargs + i];
    }
    return 0;
}

/* ---- methods -------------------------------------------------------------- */

static PyObject *
future_result(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return core_future_outcome((struct core_future *)op);
}

static PyObject *
future_exception(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    struct core_future *f = (struct core_future *)op;

    if (f->status == CORE_FUTURE_PENDING) {
        core_future_invalid_state(f, "Exception is not set.");
        return NULL;
    }
    if (f->status == CORE_FUTURE_CANCELLED)
        return core_future_outcome(f);
    f->log_tb = false;
    return Py_NewRef(f->exception != NULL ? f->exception : Py_None);
}

static PyObject *
future_set_result(PyObject *op, PyObject *value)
{
    if (core_future_set_result(op, value) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
future_set_exception(PyObject *op, PyObject *exc)
{
    if (core_future_set_exception_obj(op, exc) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* The C Task passes msg by position, the Python Task and gather by name. */
static PyObject *
future_cancel(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
              PyObject *kwnames)
{
    struct core_future *f = (struct core_future *)op;
    PyObject *msg = nargs > 0 ? args[0] : NULL;
    int rc = 0;

    if (nargs + (kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0) > 1) {
        PyErr_SetString(PyExc_TypeError,
                        "cancel() takes at most 1 argument");
        return NULL;
    }
    if (keyword_argument(args, nargs, kwnames, f->st->names.msg, "cancel",
                         &msg) < 0)
        return NULL;
    rc = core_future_cancel(op, msg);
    return rc < 0 ? NULL : PyBool_FromLong(rc);
}

static PyObject *
future_add_done_callback(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                         PyObject *kwnames)
{
    struct core_future *f = (struct core_future *)op;
    PyObject *context = NULL;

    if (nargs != 1) {
        PyErr_Format(PyExc_TypeError,
                     "add_done_callback() takes exactly 1 positional argument "
                     "(%zd given)", nargs);
        return NULL;
    }
    if (keyword_argument(args, nargs, kwnames, f->st->names.context,
                         "add_done_callback", &context) < 0)
        return NULL;
    if (context == Py_None)
        context = NULL;
    if (core_future_add_callback(f, args[0], context) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
future_remove_done_callback(PyObject *op, PyObject *fn)
{
    Py_ssize_t n = core_future_remove_callback((struct core_future *)op, fn);

    return n < 0 ? NULL : PyLong_FromSsize_t(n);
}

static PyObject *
future_cancelled(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((struct core_future *)op)->status ==
                           CORE_FUTURE_CANCELLED);
}

static PyObject *
future_done(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(core_future_done(op));
}

static PyObject *
future_get_loop(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    struct core_future *f = (struct core_future *)op;

    if (f->loop == NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "Future object is not initialized.");
        return NULL;
    }
    return Py_NewRef(f->loop);
}

static PyObject *
future_make_cancelled_error(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return core_future_cancelled_error((struct core_future *)op);
}

/* ---- attributes ------------------------------------------------------------ */

static PyObject *
or_none(PyObject *value_borrowed)
{
    return Py_NewRef(value_borrowed != NULL ? value_borrowed : Py_None);
}

/* 1, 0, or -1 with an exception set; deleting is an AttributeError. */
static int
truth_to_set(PyObject *value)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete attribute");
        return -1;
    }
    return PyObject_IsTrue(value);
}

static PyObject *
get_blocking(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((struct core_future *)op)->blocking);
}

static int
set_blocking(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    int truth = truth_to_set(value);

    if (truth < 0)
        return -1;
    ((struct core_future *)op)->blocking = truth != 0;
    return 0;
}

static PyObject *
get_log_traceback(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((struct core_future *)op)->log_tb);
}

static int
set_log_traceback(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    int truth = truth_to_set(value);

    if (truth < 0)
        return -1;
    if (truth) {
        PyErr_SetString(PyExc_ValueError,
                        "_log_traceback can only be set to False");
        return -1;
    }
    ((struct core_future *)op)->log_tb = false;
    return 0;
}

static PyObject *
get_cancel_message(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none(((struct core_future *)op)->cancel_msg);
}

static int
set_cancel_message(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete attribute");
        return -1;
    }
    Py_XSETREF(((struct core_future *)op)->cancel_msg, Py_NewRef(value));
    return 0;
}

static PyObject *
get_state(PyObject *op, void *Py_UNUSED(closure))
{
    switch (((struct core_future *)op)->status) {
    case CORE_FUTURE_PENDING:
        return PyUnicode_InternFromString("PENDING");
    case CORE_FUTURE_CANCELLED:
        return PyUnicode_InternFromString("CANCELLED");
    case CORE_FUTURE_FINISHED:
        break;
    }
    return PyUnicode_InternFromString("FINISHED");
}

static PyObject *
get_result(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none(((struct core_future *)op)->result);
}

/* Like asyncio's: who looks at it here has seen it. */
static PyObject *
get_exception(PyObject *op, void *Py_UNUSED(closure))
{
    struct core_future *f = (struct core_future *)op;

    if (f->exception != NULL)
        f->log_tb = false;
    return or_none(f->exception);
}

static PyObject *
get_callbacks(PyObject *op, void *Py_UNUSED(closure))
{
    return core_future_callbacks((struct core_future *)op);
}

static PyObject *
get_source_traceback(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none(((struct core_future *)op)->source_tb);
}

static PyObject *
get_loop(PyObject *op, void *Py_UNUSED(closure))
{
    return or_none(((struct core_future *)op)->loop);
}

/* A Task's repr asks its coroutine for these. */
static PyObject *
get_name(PyObject *Py_UNUSED(op), void *Py_UNUSED(closure))
{
    return PyUnicode_InternFromString("Future");
}

/* ---- repr ------------------------------------------------------------------- */

static PyObject *
future_repr(PyObject *op)
{
    struct core_future_state *fs = &((struct core_future *)op)->st->future;
    PyObject *info = NULL, *space = NULL, *text = NULL, *repr = NULL;

    if (fs->repr != NULL)
        return PyObject_CallOneArg(fs->repr, op);
    if (fs->repr_info == NULL)
        return PyUnicode_FromFormat("<Future at %p>", (void *)op);
    info = PyObject_CallOneArg(fs->repr_info, op);
    space = PyUnicode_FromString(" ");
    if (info != NULL && space != NULL)
        text = PyUnicode_Join(space, info);
    if (text != NULL)
        repr = PyUnicode_FromFormat("<Future %U>", text);
    Py_XDECREF(text);
    Py_XDECREF(space);
    Py_XDECREF(info);
    return repr;
}

/* ---- the type ----------------------------------------------------------------- */

/* METH_FASTCALL functions have other signatures than PyCFunction; the cast by
 * way of void (*)(void) is what the compiler takes without a warning. */
#define CORE_CFUNCTION(fn) ((PyCFunction)(void (*)(void))(fn))

static PyMethodDef future_methods[] = {
    {"result", future_result, METH_NOARGS,
     "Return the result, raise the exception, or raise InvalidStateError."},
    {"exception", future_exception, METH_NOARGS,
     "Return the exception, or None if there is none."},
    {"set_result", future_set_result, METH_O,
     "Mark the future done and set its result."},
    {"set_exception", future_set_exception, METH_O,
     "Mark the future done and set an exception."},
    {"cancel", CORE_CFUNCTION(future_cancel), METH_FASTCALL | METH_KEYWORDS,
     "cancel($self, /, msg=None)\n--\n\n"
     "Cancel the future, and the call behind it if it has not been sent."},
    {"cancelled", future_cancelled, METH_NOARGS,
     "Return True if the future was cancelled."},
    {"done", future_done, METH_NOARGS,
     "Return True if the future has an outcome or was cancelled."},
    {"add_done_callback", CORE_CFUNCTION(future_add_done_callback),
     METH_FASTCALL | METH_KEYWORDS,
     "add_done_callback($self, fn, /, *, context=None)\n--\n\n"
     "Call fn(future) through the loop once the future is done."},
    {"remove_done_callback", future_remove_done_callback, METH_O,
     "Remove all callbacks equal to fn; return how many there were."},
    {"get_loop", future_get_loop, METH_NOARGS,
     "Return the event loop the future is bound to."},
    {"_make_cancelled_error", future_make_cancelled_error, METH_NOARGS,
     "Create the CancelledError to raise if the future is cancelled."},
    {"send", core_future_send, METH_O,
     "Coroutine protocol: give the future to the Task, or its result."},
    {"throw", CORE_CFUNCTION(core_future_throw), METH_FASTCALL,
     "Coroutine protocol: raise the exception given."},
    {"close", core_future_close, METH_NOARGS,
     "Coroutine protocol: does nothing, others may await the future."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS,
     "Future[int] for type hints."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef future_getset[] = {
    {"_asyncio_future_blocking", get_blocking, set_blocking, NULL, NULL},
    {"_log_traceback", get_log_traceback, set_log_traceback, NULL, NULL},
    {"_cancel_message", get_cancel_message, set_cancel_message, NULL, NULL},
    {"_state", get_state, NULL, NULL, NULL},
    {"_result", get_result, NULL, NULL, NULL},
    {"_exception", get_exception, NULL, NULL, NULL},
    {"_callbacks", get_callbacks, NULL, NULL, NULL},
    {"_source_traceback", get_source_traceback, NULL, NULL, NULL},
    {"_loop", get_loop, NULL, NULL, NULL},
    {"__name__", get_name, NULL, NULL, NULL},
    {"__qualname__", get_name, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef future_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct core_future, weakrefs),
     READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot future_slots[] = {
    {Py_tp_doc,
     "The awaitable a call returns: an asyncio future and a coroutine."},
    {Py_tp_dealloc, core_future_dealloc},
    {Py_tp_traverse, core_future_traverse},
    {Py_tp_clear, core_future_tp_clear},
    {Py_tp_finalize, core_future_finalize},
    {Py_tp_repr, future_repr},
    {Py_tp_iter, core_future_await},
    {Py_tp_iternext, core_future_next},
    {Py_am_await, core_future_await},
    {Py_am_send, core_future_am_send},
    {Py_tp_methods, future_methods},
    {Py_tp_getset, future_getset},
    {Py_tp_members, future_members},
    {0, NULL},
};

/* Not a base type: the free list and core_future_check count on it. */
PyType_Spec core_future_spec = {
    .name = "offloop._core.Future",
    .basicsize = sizeof(struct core_future),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = future_slots,
};
