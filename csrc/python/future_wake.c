/* Waking: settle a future in a drain and step the Task that waits for it, in
 * its own context, without a turn of the loop in between.
 *
 * What a Task leaves with add_done_callback is a builtin method object: self
 * the Task, name "task_wakeup".  Calling it is all that a Handle made by
 * call_soon would do.  Anything that is not exactly that goes by call_soon. */
#include "future.h"

#include <string.h>

/* ---- errors of a wakeup ------------------------------------------------- */

static bool
stops_the_loop(void)
{
    return PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
           PyErr_ExceptionMatches(PyExc_SystemExit);
}

int
core_future_report(struct core_future *f, const char *message)
{
    const struct core_names *names = &f->st->names;
    PyObject *type = NULL, *value = NULL, *tb = NULL;
    PyObject *text = NULL, *context = NULL, *done = NULL;
    int rc = 0;

    if (stops_the_loop())
        return -1;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL)
        (void)PyException_SetTraceback(value, tb);

    text = PyUnicode_FromString(message);
    context = PyDict_New();
    if (text != NULL && context != NULL && value != NULL && f->loop != NULL &&
        PyDict_SetItem(context, names->message, text) == 0 &&
        PyDict_SetItem(context, names->exception, value) == 0 &&
        PyDict_SetItem(context, names->future, (PyObject *)f) == 0 &&
        (f->source_tb == NULL ||
         PyDict_SetItem(context, names->source_traceback, f->source_tb) == 0))
        done = PyObject_CallMethodOneArg(
            f->loop, names->call_exception_handler, context);
    if (PyErr_Occurred()) {
        if (stops_the_loop())
            rc = -1;
        else
            PyErr_WriteUnraisable((PyObject *)f);
    }
    Py_XDECREF(done);
    Py_XDECREF(context);
    Py_XDECREF(text);
    Py_XDECREF(tb);
    Py_XDECREF(value);
    Py_XDECREF(type);
    return rc;
}

/* ---- what may be woken in place ------------------------------------------ */

static bool
is_task_wakeup(struct core_future_state *fs, PyObject *fn)
{
    PyMethodDef *def = NULL;
    PyObject *self = NULL;

    if (!PyCFunction_Check(fn) || fs->task_type == NULL)
        return false;
    def = ((PyCFunctionObject *)fn)->m_ml;
    self = PyCFunction_GET_SELF(fn);
    if (self == NULL || !PyObject_TypeCheck(self, fs->task_type))
        return false;
    if (def == fs->task_wakeup_borrowed)
        return true;
    /* t.cancel has a Task for self as well, so the name decides; once found,
     * the definition is the same for every Task. */
    if (strcmp(def->ml_name, "task_wakeup") != 0)
        return false;
    fs->task_wakeup_borrowed = def;
    return true;
}

/* 1 if a task of this loop is in the middle of a step, 0 if not, -1 on error.
 * It is when the drain runs in a turn of the loop that a task made itself. */
static int
task_is_current(struct core_future_state *fs, PyObject *loop)
{
    PyObject *task = NULL;
    int rc = 0;

    if (fs->current_tasks != NULL) {
        task = PyDict_GetItemWithError(fs->current_tasks, loop);
        if (task == NULL && PyErr_Occurred())
            return -1;
        return task != NULL && task != Py_None;
    }
    if (fs->current_task == NULL)
        return 1;
    task = PyObject_CallOneArg(fs->current_task, loop);
    if (task == NULL)
        return -1;
    rc = task != Py_None;
    Py_DECREF(task);
    return rc;
}

int
core_wake_begin(struct core_state *st, PyObject *loop, struct core_wake_ctx *w)
{
    PyObject *answer = NULL;
    int debug = 0, nested = 0;

    *w = (struct core_wake_ctx){.st = st, .loop_borrowed = loop};
    /* In debug mode the slow-callback log must name the task, not us. */
    answer = PyObject_CallMethodNoArgs(loop, st->names.get_debug);
    if (answer == NULL)
        return -1;
    debug = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    if (debug < 0)
        return -1;
    nested = task_is_current(&st->future, loop);
    if (nested < 0)
        return -1;
    w->debug = debug != 0;
    w->in_place = !debug && !nested;
    return 0;
}

void
core_wake_end(struct core_wake_ctx *w)
{
    w->loop_borrowed = NULL;
    w->in_place = false;
}

/* ---- waking --------------------------------------------------------------- */

/* What to tell a Task's wakeup.  All that it does with a future is ask for the
 * outcome, and throw into its coroutine what that raises; a value is dropped, as
 * the coroutine fetches it from the future that it awaits.  With a future of
 * asyncio's very own type it asks directly; with any other one it makes a str
 * "result", looks that up and calls a method made for it, which is a sixth of
 * all that a command costs the loop. */
static PyObject *
news_of(struct core_future *f)
{
    PyObject *succeeded = f->st->future.succeeded;

    if (succeeded != NULL && f->status == CORE_FUTURE_FINISHED &&
        f->exception == NULL)
        return succeeded;
    return (PyObject *)f;
}

/* Step the Task behind fn inside its context.  Same result as the settle
 * functions.  fn and context are already off the future: a wakeup that is
 * called twice steps the Task into its NEXT await. */
static int
wake_in_place(struct core_future *f, PyObject *fn, PyObject *context)
{
    PyObject *type = NULL, *value = NULL, *tb = NULL;
    PyObject *none = NULL;

    if (PyContext_Enter(context) < 0) {
        /* Entered already, further down this thread's stack. */
        PyErr_Clear();
        if (core_future_call_soon(f, fn, context) < 0)
            return core_future_report(f, "Waking a task failed");
        return 0;
    }
    none = PyObject_CallOneArg(fn, news_of(f));
    if (none != NULL) {
        Py_DECREF(none);
        if (PyContext_Exit(context) < 0)
            return core_future_report(f, "Leaving a task's context failed");
        return 0;
    }
    PyErr_Fetch(&type, &value, &tb);
    if (PyContext_Exit(context) < 0)
        PyErr_WriteUnraisable((PyObject *)f);
    PyErr_Restore(type, value, tb);
    return core_future_report(f, "Exception in a task's wakeup");
}

/* The future is done, its callbacks are still on it. */
static int
wake(struct core_wake_ctx *w, struct core_future *f)
{
    PyObject *fn = f->callback, *context = f->context;
    int rc = 0;

    if (fn == NULL && f->more == NULL)
        return 0;
    if (!w->in_place || f->more != NULL || f->loop != w->loop_borrowed ||
        !is_task_wakeup(&w->st->future, fn)) {
        if (core_future_schedule(f) < 0)
            rc = core_future_report(f, "Scheduling a future's callbacks failed");
        return rc;
    }
    f->callback = NULL;
    f->context = NULL;
    rc = wake_in_place(f, fn, context);
    Py_DECREF(fn);
    Py_DECREF(context);
    return rc;
}

int
core_future_settle_result(struct core_wake_ctx *w, PyObject *fut,
                          PyObject *value)
{
    struct core_future *f = (struct core_future *)fut;
    int rc = 0;

    /* A task stepped earlier in this drain may have cancelled it. */
    if (f->status != CORE_FUTURE_PENDING)
        return 0;
    /* The step drops the Task's own reference, maybe the last one. */
    Py_INCREF(fut);
    core_future_finish(f, CORE_FUTURE_FINISHED, value, NULL);
    rc = wake(w, f);
    Py_DECREF(fut);
    return rc;
}

int
core_future_settle_exception(struct core_wake_ctx *w, PyObject *fut,
                             PyObject *exc)
{
    struct core_future *f = (struct core_future *)fut;
    PyObject *value = NULL;
    int rc = 0;

    if (f->status != CORE_FUTURE_PENDING)
        return 0;
    Py_INCREF(fut);
    value = core_future_exception_of(f, exc);
    /* What a future cannot hold (StopIteration, up to 3.12) must still end
     * it: nobody would ever wake its task again. */
    if (value == NULL) {
        PyObject *type = NULL, *tb = NULL;

        PyErr_Fetch(&type, &value, &tb);
        PyErr_NormalizeException(&type, &value, &tb);
        Py_XDECREF(type);
        Py_XDECREF(tb);
    }
    if (f->status == CORE_FUTURE_PENDING) {
        core_future_finish(f, CORE_FUTURE_FINISHED, NULL, value);
        rc = wake(w, f);
    }
    Py_XDECREF(value);
    Py_DECREF(fut);
    return rc;
}
