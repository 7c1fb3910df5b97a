/* The awaitable as a part of the module: what it takes from asyncio, its type,
 * and the two functions that tests make and settle futures with. */
#include "future.h"

/* ---- module functions ------------------------------------------------------------ */

static PyObject *
module_new_future(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop", NULL};
    struct core_state *st = core_state_of(module);
    PyObject *loop = NULL, *answer = NULL;
    int debug = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:new_future", names,
                                     &loop))
        return NULL;
    answer = PyObject_CallMethodNoArgs(loop, st->names.get_debug);
    if (answer == NULL)
        return NULL;
    debug = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return debug < 0 ? NULL : core_future_new(st, loop, debug != 0);
}

/* One (future, outcome) of _settle_batch; an exception instance is raised. */
static int
settle_item(struct core_wake_ctx *w, PyObject *item)
{
    PyObject *fut = NULL, *outcome = NULL;

    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2 ||
        !core_future_check(w->st, PyTuple_GET_ITEM(item, 0))) {
        PyErr_SetString(PyExc_TypeError, "expected (Future, outcome)");
        return -1;
    }
    fut = PyTuple_GET_ITEM(item, 0);
    outcome = PyTuple_GET_ITEM(item, 1);
    return PyExceptionInstance_Check(outcome)
               ? core_future_settle_exception(w, fut, outcome)
               : core_future_settle_result(w, fut, outcome);
}

static PyObject *
module_settle_batch(PyObject *module, PyObject *args)
{
    struct core_wake_ctx w;
    PyObject *loop = NULL, *batch = NULL, *items = NULL;
    int rc = 0;

    if (!PyArg_ParseTuple(args, "OO:_settle_batch", &loop, &batch))
        return NULL;
    items = PySequence_Tuple(batch);
    if (items == NULL)
        return NULL;
    rc = core_wake_begin(core_state_of(module), loop, &w);
    if (rc == 0) {
        for (Py_ssize_t i = 0; rc == 0 && i < PyTuple_GET_SIZE(items); i++)
            rc = settle_item(&w, PyTuple_GET_ITEM(items, i));
        core_wake_end(&w);
    }
    Py_DECREF(items);
    if (rc < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef module_functions[] = {
    {"new_future", (PyCFunction)(void (*)(void))module_new_future,
     METH_VARARGS | METH_KEYWORDS,
     "new_future(loop)\n--\n\n"
     "A bare pending Future of the loop, to be settled by hand."},
    {"_settle_batch", module_settle_batch, METH_VARARGS,
     "_settle_batch(loop, batch, /)\n--\n\n"
     "Settle each (future, result or exception) as one drain would."},
    {NULL, NULL, 0, NULL},
};

/* ---- the part ---------------------------------------------------------------------- */

/* Fetch an attribute that some versions lack; *out stays NULL then. */
static int
optional_attr(const char *module, const char *name, PyObject **out)
{
    *out = core_import_attr(module, name);
    if (*out != NULL)
        return 0;
    if (!PyErr_ExceptionMatches(PyExc_AttributeError) &&
        !PyErr_ExceptionMatches(PyExc_ImportError))
        return -1;
    PyErr_Clear();
    return 0;
}

static int
import_asyncio(struct core_future_state *fs)
{
    PyObject *task = NULL, *tasks = NULL;

    /* asyncio before anything of _asyncio: imported the other way round,
     * asyncio.tasks falls back to Python tables that the C Task does not
     * keep, and current_task() is None in the whole process. */
    fs->asyncio_future = core_import_attr("asyncio", "Future");
    if (fs->asyncio_future == NULL)
        return -1;
    fs->cancelled_error = core_import_attr("asyncio", "CancelledError");
    fs->invalid_state_error = core_import_attr("asyncio", "InvalidStateError");
    fs->current_task = core_import_attr("asyncio", "current_task");
    fs->extract_stack = core_import_attr("traceback", "extract_stack");
    if (fs->cancelled_error == NULL || fs->invalid_state_error == NULL ||
        fs->current_task == NULL || fs->extract_stack == NULL)
        return -1;
    if (optional_attr("asyncio.base_futures", "_future_repr", &fs->repr) < 0 ||
        optional_attr("asyncio.base_futures", "_future_repr_info",
                      &fs->repr_info) < 0 ||
        optional_attr("_asyncio", "Task", &task) < 0 ||
        optional_attr("_asyncio", "_current_tasks", &tasks) < 0)
        return -1;
    if (task != NULL && PyType_Check(task))
        fs->task_type = (PyTypeObject *)Py_NewRef(task);
    if (tasks != NULL && PyDict_CheckExact(tasks))
        fs->current_tasks = Py_NewRef(tasks);
    Py_XDECREF(task);
    Py_XDECREF(tasks);
    return 0;
}

/* What a Task is told that waited for one of ours with success, see future_wake.c.
 * It belongs to no loop, so that it keeps none. */
static int
make_succeeded(struct core_future_state *fs)
{
    PyObject *type = NULL, *loop = NULL, *args = NULL, *kwargs = NULL;
    PyObject *future = NULL, *done = NULL;
    int rc = -1;

    if (fs->task_type == NULL)
        return 0;
    if (optional_attr("_asyncio", "Future", &type) < 0)
        return -1;
    if (type == NULL)
        return 0;
    loop = core_import_attr("types", "SimpleNamespace");
    kwargs = Py_BuildValue("{s:O}", "get_debug", (PyObject *)&PyBool_Type);
    args = PyTuple_New(0);
    if (loop == NULL || kwargs == NULL || args == NULL)
        goto done;
    Py_SETREF(loop, PyObject_Call(loop, args, kwargs));
    Py_SETREF(kwargs, loop == NULL ? NULL : Py_BuildValue("{s:O}", "loop", loop));
    if (kwargs != NULL)
        future = PyObject_Call(type, args, kwargs);
    if (future != NULL)
        done = PyObject_CallMethod(future, "set_result", "O", Py_None);
    if (done == NULL)
        goto done;
    fs->succeeded = Py_NewRef(future);
    rc = 0;
done:
    Py_XDECREF(done);
    Py_XDECREF(future);
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(loop);
    Py_XDECREF(type);
    return rc;
}

/* asyncio.iscoroutine goes by this registration. */
static int
register_coroutine(struct core_future_state *fs)
{
    PyObject *abc = core_import_attr("collections.abc", "Coroutine");
    PyObject *done = NULL;

    if (abc != NULL)
        done = PyObject_CallMethod(abc, "register", "O", fs->type);
    Py_XDECREF(abc);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static int
future_register(PyObject *module, struct core_state *st)
{
    struct core_future_state *fs = &st->future;

    if (import_asyncio(fs) < 0 || make_succeeded(fs) < 0)
        return -1;
    fs->kw_context = PyTuple_Pack(1, st->names.context);
    if (fs->kw_context == NULL)
        return -1;
    fs->type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &core_future_spec, NULL);
    if (fs->type == NULL || PyModule_AddType(module, fs->type) < 0 ||
        register_coroutine(fs) < 0)
        return -1;
    fs->max_free = CORE_FUTURE_FREE_MAX;
    return PyModule_AddFunctions(module, module_functions);
}

static int
future_visit(struct core_state *st, visitproc visit, void *arg)
{
    struct core_future_state *fs = &st->future;

    Py_VISIT(fs->type);
    Py_VISIT(fs->cancelled_error);
    Py_VISIT(fs->invalid_state_error);
    Py_VISIT(fs->asyncio_future);
    Py_VISIT(fs->extract_stack);
    Py_VISIT(fs->repr);
    Py_VISIT(fs->repr_info);
    Py_VISIT(fs->kw_context);
    Py_VISIT(fs->succeeded);
    Py_VISIT(fs->task_type);
    Py_VISIT(fs->current_tasks);
    Py_VISIT(fs->current_task);
    return 0;
}

static void
future_clear(struct core_state *st)
{
    struct core_future_state *fs = &st->future;

    core_future_drop_free_list(fs);
    Py_CLEAR(fs->type);
    Py_CLEAR(fs->cancelled_error);
    Py_CLEAR(fs->invalid_state_error);
    Py_CLEAR(fs->asyncio_future);
    Py_CLEAR(fs->extract_stack);
    Py_CLEAR(fs->repr);
    Py_CLEAR(fs->repr_info);
    Py_CLEAR(fs->kw_context);
    Py_CLEAR(fs->succeeded);
    Py_CLEAR(fs->task_type);
    Py_CLEAR(fs->current_tasks);
    Py_CLEAR(fs->current_task);
    fs->task_wakeup_borrowed = NULL;
}

const struct core_part core_future_part = {
    .register_part = future_register,
    .visit = future_visit,
    .clear = future_clear,
};
