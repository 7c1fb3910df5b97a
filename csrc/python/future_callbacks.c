/* The callbacks of a future: kept in order, given to the loop in order. */
#include "future.h"

int
core_future_call_soon(struct core_future *f, PyObject *fn, PyObject *context)
{
    const struct core_names *names = &f->st->names;
    PyObject *kw = f->st->future.kw_context;
    PyObject *stack[4] = {f->loop, fn, (PyObject *)f, context};
    PyObject *handle = NULL;

    if (f->loop == NULL || kw == NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "Future object is not initialized.");
        return -1;
    }
    handle = PyObject_VectorcallMethod(
        names->call_soon, stack, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, kw);
    Py_XDECREF(handle);
    return handle == NULL ? -1 : 0;
}

int
core_future_schedule(struct core_future *f)
{
    PyObject *fn = f->callback, *context = f->context, *more = f->more;
    int rc = 0;

    /* Off the future first: call_soon is user code with some loops, and none
     * of them may be called twice. */
    f->callback = NULL;
    f->context = NULL;
    f->more = NULL;
    if (fn != NULL)
        rc = core_future_call_soon(f, fn, context);
    for (Py_ssize_t i = 0;
         rc == 0 && more != NULL && i < PyList_GET_SIZE(more); i++) {
        PyObject *pair = PyList_GET_ITEM(more, i);

        rc = core_future_call_soon(f, PyTuple_GET_ITEM(pair, 0),
                                   PyTuple_GET_ITEM(pair, 1));
    }
    Py_XDECREF(fn);
    Py_XDECREF(context);
    Py_XDECREF(more);
    return rc;
}

int
core_future_add_callback(struct core_future *f, PyObject *fn,
                         PyObject *context)
{
    PyObject *ctx = NULL, *pair = NULL;
    int rc = -1;

    ctx = context != NULL ? Py_NewRef(context) : PyContext_CopyCurrent();
    if (ctx == NULL)
        return -1;
    if (f->status != CORE_FUTURE_PENDING) {
        /* Never in place: a Task is inside its own step here, and notes what
         * it waits for only after this returns. */
        rc = core_future_call_soon(f, fn, ctx);
    } else if (f->callback == NULL && f->more == NULL) {
        f->callback = Py_NewRef(fn);
        f->context = Py_NewRef(ctx);
        rc = 0;
    } else {
        pair = PyTuple_Pack(2, fn, ctx);
        if (pair == NULL)
            goto done;
        if (f->more == NULL)
            f->more = PyList_New(0);
        if (f->more != NULL)
            rc = PyList_Append(f->more, pair);
    }
done:
    Py_XDECREF(pair);
    Py_DECREF(ctx);
    return rc;
}

PyObject *
core_future_callbacks(struct core_future *f)
{
    PyObject *list = NULL, *pair = NULL;

    if (f->callback == NULL && f->more == NULL)
        Py_RETURN_NONE;
    list = f->more != NULL ? PyList_GetSlice(f->more, 0, PY_SSIZE_T_MAX)
                           : PyList_New(0);
    if (list == NULL || f->callback == NULL)
        return list;
    pair = PyTuple_Pack(2, f->callback, f->context);
    if (pair == NULL || PyList_Insert(list, 0, pair) < 0)
        Py_CLEAR(list);
    Py_XDECREF(pair);
    return list;
}

/* Put the first callback into the list with the others, which gives each an
 * identity that survives what a comparison may do to the future. */
static int
all_into_list(struct core_future *f)
{
    PyObject *list = core_future_callbacks(f);

    if (list == NULL)
        return -1;
    Py_XSETREF(f->more, list);
    Py_CLEAR(f->callback);
    Py_CLEAR(f->context);
    return 0;
}

/* Back again once few are left: only a lone callback can be woken in place. */
static int
out_of_list(struct core_future *f)
{
    PyObject *pair = NULL;

    if (f->more == NULL || f->callback != NULL)
        return 0;
    if (PyList_GET_SIZE(f->more) > 0) {
        pair = Py_NewRef(PyList_GET_ITEM(f->more, 0));
        if (PyList_SetSlice(f->more, 0, 1, NULL) < 0) {
            Py_DECREF(pair);
            return -1;
        }
        f->callback = Py_NewRef(PyTuple_GET_ITEM(pair, 0));
        f->context = Py_NewRef(PyTuple_GET_ITEM(pair, 1));
        Py_DECREF(pair);
    }
    if (PyList_GET_SIZE(f->more) == 0)
        Py_CLEAR(f->more);
    return 0;
}

/* Take this very pair out. 1 if it was there, 0 if not, -1 on error. */
static int
remove_pair(PyObject *list, PyObject *pair)
{
    for (Py_ssize_t i = 0; list != NULL && i < PyList_GET_SIZE(list); i++)
        if (PyList_GET_ITEM(list, i) == pair)
            return PyList_SetSlice(list, i, i + 1, NULL) < 0 ? -1 : 1;
    return 0;
}

Py_ssize_t
core_future_remove_callback(struct core_future *f, PyObject *fn)
{
    PyObject *snapshot = NULL;
    Py_ssize_t removed = 0;
    int equal = 0, was = 0;

    if (f->callback == NULL && f->more == NULL)
        return 0;
    if (all_into_list(f) < 0)
        return -1;
    snapshot = PyList_GetSlice(f->more, 0, PY_SSIZE_T_MAX);
    if (snapshot == NULL)
        goto fail;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(snapshot); i++) {
        PyObject *pair = PyList_GET_ITEM(snapshot, i);

        /* May add, remove or settle: look each time at what is there. */
        equal = PyObject_RichCompareBool(PyTuple_GET_ITEM(pair, 0), fn, Py_EQ);
        if (equal < 0)
            goto fail;
        was = equal ? remove_pair(f->more, pair) : 0;
        if (was < 0)
            goto fail;
        removed += was;
    }
    Py_DECREF(snapshot);
    return out_of_list(f) < 0 ? -1 : removed;
fail:
    Py_XDECREF(snapshot);
    /* An error here is the one to report; the order is right either way. */
    if (f->more != NULL && f->callback == NULL && PyList_GET_SIZE(f->more) == 0)
        Py_CLEAR(f->more);
    return -1;
}
