#include "call.h"

#include <math.h>

#include "../runtime/rt_lane.h"
#include "caller_type.h"
#include "errors.h"
#include "host.h"
#include "pool_type.h"

#define FREE_MAX 1024 /* calls kept for reuse, 150 bytes each */
#define PATIENCE (1 * RT_MS)       /* before an interrupt is called again */
#define PATIENCE_MAX (100 * RT_MS) /* it doubles up to that */

/* ---- the call itself --------------------------------------------------------------------- */

struct core_call *core_call_new(struct core_state *st, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames)
{
    struct core_native_state *native = &st->native;
    Py_ssize_t total = nargs - 1 + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames)), i;
    struct core_call *call = native->calls;

    if (call != NULL) {
        native->calls = call->next_free;
        native->call_count--;
    } else {
        call = malloc(sizeof *call);
        if (call == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
    }
    call->args = call->few;
    if (total > CORE_CALL_FEW) {
        call->args = malloc((size_t)(total + 1) * sizeof *call->args);
        if (call->args == NULL) {
            free(call);
            PyErr_NoMemory();
            return NULL;
        }
    }
    call->fn = Py_NewRef(args[0]);
    call->context = NULL;
    call->kwnames = Py_XNewRef(kwnames);
    call->interrupt = NULL;
    call->patience = 0;
    call->outcome = NULL;
    call->raised = call->inside = call->unwanted = false;
    call->nargs = nargs - 1;
    call->args[0] = NULL;
    for (i = 0; i < total; i++)
        call->args[i + 1] = Py_NewRef(args[i + 1]);
    return call;
}

/* Let go of the function and its arguments. */
static void let_go(struct core_call *call)
{
    PyObject *fn = call->fn;
    Py_ssize_t total, i;

    if (fn == NULL)
        return;
    total = call->nargs + (call->kwnames == NULL ? 0 : PyTuple_GET_SIZE(call->kwnames));
    call->fn = NULL;
    for (i = 1; i <= total; i++)
        Py_CLEAR(call->args[i]);
    Py_CLEAR(call->kwnames);
    Py_CLEAR(call->context);
    Py_DECREF(fn);
    if (call->args != call->few)
        free(call->args);
    call->args = call->few;
}

void core_call_free(struct core_state *st, struct core_call *call)
{
    struct core_native_state *native = &st->native;

    let_go(call);
    Py_CLEAR(call->interrupt);
    Py_CLEAR(call->outcome);
    if (native->call_count >= FREE_MAX) {
        free(call);
        return;
    }
    call->next_free = native->calls;
    native->calls = call;
    native->call_count++;
}

void core_call_drop_free_list(struct core_native_state *native)
{
    struct core_call *call;

    native->call_count = FREE_MAX; /* none is kept from now on */
    while ((call = native->calls) != NULL) {
        native->calls = call->next_free;
        free(call);
    }
}

/* A StopIteration would end the coroutine that awaits, as if it had returned: the
 * exception becomes a RuntimeError with it as its cause, as in a generator. */
static PyObject *tame(PyObject *exception)
{
    PyObject *error, *tb;

    if (!PyErr_GivenExceptionMatches(exception, PyExc_StopIteration))
        return exception;
    error = PyObject_CallFunction(PyExc_RuntimeError, "s", "the function raised StopIteration");
    if (error == NULL) {
        Py_DECREF(exception);
        return core_take_exception();
    }
    tb = PyException_GetTraceback(exception);
    if (tb != NULL)
        (void)PyException_SetTraceback(error, tb);
    Py_XDECREF(tb);
    PyException_SetContext(error, Py_NewRef(exception));
    PyException_SetCause(error, exception);
    return error;
}

void core_call_interrupt(struct core_job *job)
{
    struct core_call *call = job->call;
    PyObject *interrupt = call->interrupt, *done;

    if (interrupt == NULL)
        return;
    if (!call->inside) {
        call->unwanted = true; /* if it is not over */
        return;
    }
    if (job->due_place != 0)
        core_dues_remove(job->bridge, job);
    call->patience = call->patience == 0 ? PATIENCE : 2 * call->patience;
    if (call->patience > PATIENCE_MAX)
        call->patience = PATIENCE_MAX;
    job->due = rt_after(rt_now(), call->patience);
    Py_INCREF(interrupt);
    if (core_dues_add(job->bridge, job) < 0)
        PyErr_WriteUnraisable(interrupt);
    /* From here on the job may be over. */
    done = PyObject_CallNoArgs(interrupt);
    if (done == NULL)
        PyErr_WriteUnraisable(interrupt);
    Py_XDECREF(done);
    Py_DECREF(interrupt);
}

void core_call_invoke(struct core_call *call)
{
    PyObject *context = call->context, *value = NULL;

    if (call->unwanted) {
        value = Py_NewRef(Py_None);
    } else if (context == NULL || PyContext_Enter(context) == 0) {
        call->inside = true;
        value = PyObject_Vectorcall(call->fn, call->args + 1,
                                    (size_t)call->nargs | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                    call->kwnames);
        call->inside = false;
        if (value == NULL) {
            value = core_take_exception();
            call->raised = true;
        }
        if (context != NULL && PyContext_Exit(context) < 0)
            PyErr_WriteUnraisable(call->fn);
    } else {
        value = core_take_exception();
        call->raised = true;
    }
    call->outcome = value;
    let_go(call);
}

/* ---- as a job ------------------------------------------------------------------------------ */

static void run_call(struct rt_job *base, struct rt_worker *worker)
{
    struct core_job *job = core_job_of(base);
    struct core_pool *pool = job->bridge->pool;

    core_host_meet(worker, &job->bridge->busy_poll);
    if (!core_host_enter(worker, pool)) {
        rt_pool_complete(base, RT_ECLOSED);
        return;
    }
    if (pool->broken) {
        rt_worker_finish(worker, base, RT_EREFUSED);
    } else {
        core_call_invoke(job->call);
        if (job->call->raised)
            job->call->outcome = tame(job->call->outcome);
        /* A loop that looks for results has the next call ready soon. */
        worker->expects = core_busy_poll_place(&job->bridge->busy_poll) != CORE_ELSEWHERE;
        rt_worker_finish(worker, base, RT_OK);
        core_host_share(worker);
    }
}

static int send_call(struct core_job *job)
{
    if (job->keep != NULL)
        return core_lane_submit((struct core_lane *)job->keep, &job->rds.base);
    return rt_pool_submit(job->bridge->pool->rt, &job->rds.base);
}

static int send_calls(struct core_job *first, struct rt_joblist *jobs)
{
    if (first->keep != NULL)
        return core_lane_submit_all((struct core_lane *)first->keep, jobs);
    return rt_pool_submit_all(first->bridge->pool->rt, jobs);
}

int core_raise_broken_pool(struct core_state *st)
{
    PyObject *type = st->native.broken_pool_error;

    PyErr_SetString(type != NULL ? type : PyExc_RuntimeError,
                    "A thread initializer failed, the thread pool is not usable anymore");
    return -1;
}

static int finish_call(struct core_wake_ctx *w, struct core_bridge *bridge, struct core_job *job,
                       PyObject *fut)
{
    PyObject *outcome = job->call->outcome;
    bool raised = job->call->raised;
    int rc, err = job->rds.base.err;

    job->call->outcome = NULL;
    core_bridge_recycle(bridge, job);
    if (err != RT_OK) {
        if (err == RT_EREFUSED)
            core_raise_broken_pool(bridge->st);
        else
            core_raise_call_err(bridge->st, err);
        outcome = core_take_exception();
        raised = true;
    }
    if (raised)
        rc = core_future_settle_exception(w, fut, outcome);
    else
        rc = core_future_settle_result(w, fut, outcome);
    Py_DECREF(outcome);
    Py_DECREF(fut);
    return rc;
}

int core_call_give_up(struct core_wake_ctx *w, struct core_bridge *bridge)
{
    PyObject *closed = bridge->st->native.pool_closed_error, *exception, *fut;
    struct core_job *job = bridge->calls;
    int rc = 0;

    while (rc == 0 && job != NULL) {
        bool began;

        fut = job->rds.base.owner;
        if (fut == NULL || !rt_job_cancel(&job->rds.base)) {
            job = job->next_call; /* nobody waits, or it is done and on its way here */
            continue;
        }
        began = rt_job_state(&job->rds.base) != RT_JOB_CANCELLED;
        job->rds.base.owner = NULL;
        core_loosen(fut);
        if (began)
            core_call_interrupt(job);
        if (began)
            PyErr_SetString(closed != NULL ? closed : PyExc_RuntimeError,
                            "the pool was closed while the call was running: it goes on, and "
                            "what it returns is dropped");
        else
            core_raise_call_err(bridge->st, RT_ECLOSED);
        exception = core_take_exception();
        rc = core_future_settle_exception(w, fut, exception);
        Py_DECREF(exception);
        Py_DECREF(fut);
        job = bridge->calls; /* other code ran: begin anew */
    }
    return rc;
}

/* ---- making it ------------------------------------------------------------------------------- */

bool core_timeout_of(PyObject *seconds, uint64_t *out)
{
    double value;

    *out = RT_NEVER;
    if (seconds == NULL || seconds == Py_None)
        return true;
    value = PyFloat_AsDouble(seconds);
    if (value == -1.0 && PyErr_Occurred())
        return false;
    if (isnan(value)) {
        PyErr_SetString(PyExc_ValueError, "timeout must be a number of seconds or None, not nan");
        return false;
    }
    if (value < 1e9)
        *out = value <= 0 ? 0 : (uint64_t)(value * 1e9);
    return true;
}

/* No loop runs here: a coroutine that makes the call when it is awaited. */
static PyObject *defer(const struct core_way *way, PyObject *const *args, Py_ssize_t nargs,
                       PyObject *kwnames)
{
    struct core_native_state *native = &way->pool->st->native;
    PyObject *tuple = PyTuple_New(nargs), *dict = PyDict_New(), *method = NULL, *result = NULL;
    Py_ssize_t i;

    if (tuple == NULL || dict == NULL)
        goto done;
    for (i = 0; i < nargs; i++)
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(args[i]));
    for (i = 0; kwnames != NULL && i < PyTuple_GET_SIZE(kwnames); i++) {
        if (PyDict_SetItem(dict, PyTuple_GET_ITEM(kwnames, i), args[nargs + i]) < 0)
            goto done;
    }
    method = PyObject_GetAttr(way->self, native->str_call);
    if (method == NULL)
        goto done;
    if (native->deferred == NULL)
        PyErr_SetString(PyExc_RuntimeError, "no running event loop");
    else
        result = PyObject_CallFunctionObjArgs(native->deferred, method, tuple, dict, NULL);
done:
    Py_XDECREF(method);
    Py_XDECREF(dict);
    Py_XDECREF(tuple);
    return result;
}

/* Whether a call may be made: -1 with an exception set if not. */
static int check(struct core_pool *pool, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "call() needs a function to call");
        return -1;
    }
    if (!PyCallable_Check(args[0])) {
        PyErr_Format(PyExc_TypeError, "call(): the first argument must be callable, not %.200s",
                     Py_TYPE(args[0])->tp_name);
        return -1;
    }
    return pool->broken ? core_raise_broken_pool(pool->st) : 0;
}

/* A job for a call and its future, not sent yet.  NULL with an exception set. */
static struct core_job *make_job(const struct core_way *way, struct core_bridge *bridge,
                                 PyObject *loop, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames, PyObject **fut)
{
    uint64_t deadline = way->timeout == RT_NEVER ? RT_NEVER : rt_after(rt_now(), way->timeout);
    struct core_state *st = bridge->st;
    struct core_job *job;

    *fut = core_future_new(st, loop, bridge->debug);
    job = *fut != NULL ? core_bridge_job(bridge, deadline) : NULL;
    if (job == NULL)
        goto fail;
    job->call = core_call_new(st, args, nargs, kwnames);
    if (job->call == NULL)
        goto fail;
    job->call->interrupt = Py_XNewRef(way->interrupt);
    job->call->context = PyContext_CopyCurrent();
    if (job->call->context == NULL)
        goto fail;
    job->rds.base.run = run_call;
    job->rds.base.hosted = true;
    job->finish = finish_call;
    job->send = send_call;
    job->keep = Py_XNewRef((PyObject *)way->lane);
    if (way->lane != NULL)
        way->lane->pending++;
    job->due = deadline;
    if (deadline != RT_NEVER && core_dues_add(bridge, job) < 0)
        goto fail;
    return job;
fail:
    if (job != NULL)
        core_bridge_recycle(bridge, job);
    Py_CLEAR(*fut);
    return NULL;
}

PyObject *core_call_start(const struct core_way *way, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *kwnames)
{
    struct core_bridge *bridge;
    PyObject *loop = NULL, *fut = NULL;
    struct core_job *job;

    if (check(way->pool, args, nargs) < 0)
        return NULL;
    bridge = core_bridge_of(way->pool, &loop);
    if (bridge == NULL)
        return PyErr_Occurred() ? NULL : defer(way, args, nargs, kwnames);
    job = make_job(way, bridge, loop, args, nargs, kwnames, &fut);
    if (job == NULL)
        return NULL;
    if (core_bridge_send(bridge, job, fut) < 0)
        Py_CLEAR(fut);
    return fut;
}

/* ---- many at once --------------------------------------------------------------------------- */

/* The job of one (fn, args) of a batch. */
static struct core_job *make_one(const struct core_way *way, struct core_bridge *bridge,
                                 PyObject *loop, PyObject *item, PyObject **fut)
{
    PyObject *few[CORE_CALL_FEW + 1], **args = few, *tuple;
    struct core_job *job = NULL;
    Py_ssize_t n;

    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2 ||
        !PyTuple_Check(PyTuple_GET_ITEM(item, 1))) {
        PyErr_SetString(PyExc_TypeError, "a call is a tuple of a function and a tuple");
        return NULL;
    }
    tuple = PyTuple_GET_ITEM(item, 1);
    n = PyTuple_GET_SIZE(tuple);
    if (n > CORE_CALL_FEW && (args = malloc((size_t)(n + 1) * sizeof *args)) == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    args[0] = PyTuple_GET_ITEM(item, 0);
    if (n > 0)
        memcpy(args + 1, &PyTuple_GET_ITEM(tuple, 0), (size_t)n * sizeof *args);
    if (check(way->pool, args, n + 1) == 0)
        job = make_job(way, bridge, loop, args, n + 1, NULL, fut);
    if (args != few)
        free(args);
    return job;
}

PyObject *core_call_start_all(const struct core_way *way, PyObject *calls)
{
    PyObject *items = PySequence_Tuple(calls), *list = NULL, *loop = NULL;
    struct core_bridge *bridge = NULL;
    struct core_job **jobs = NULL;
    Py_ssize_t n, i = 0;

    if (items == NULL)
        return NULL;
    n = PyTuple_GET_SIZE(items);
    bridge = core_bridge_of(way->pool, &loop);
    if (bridge == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "no running event loop");
        goto done;
    }
    Py_INCREF(bridge);
    list = PyList_New(n);
    jobs = malloc((size_t)(n > 0 ? n : 1) * sizeof *jobs);
    if (list == NULL || jobs == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    for (i = 0; i < n; i++) {
        PyObject *fut = NULL;

        jobs[i] = make_one(way, bridge, loop, PyTuple_GET_ITEM(items, i), &fut);
        if (jobs[i] == NULL)
            goto fail;
        PyList_SET_ITEM(list, i, fut);
    }
    if (n == 0 || core_bridge_send_all(bridge, jobs, &PyList_GET_ITEM(list, 0), (size_t)n,
                                       send_calls) == 0)
        goto done;
    i = 0; /* they were given back */
fail:
    while (i > 0)
        core_bridge_recycle(bridge, jobs[--i]);
    Py_CLEAR(list);
done:
    free(jobs);
    Py_XDECREF(bridge);
    Py_DECREF(items);
    return list;
}
