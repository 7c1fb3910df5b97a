#include "executor.h"

#include "../runtime/rt_pool.h"
#include "caller_type.h"
#include "errors.h"
#include "host.h"
#include "pool_type.h"

struct task {
    struct rt_job job;
    struct core_pool *pool; /* owned, like all of these */
    struct core_lane *lane; /* or NULL */
    struct core_call *call;
    PyObject *future;
};

/* An error that nobody else can be told of. */
static void drop_error(const struct task *task)
{
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(task->future);
}

static void free_task(struct task *task)
{
    struct core_state *st = core_state_hold(task->pool->st);

    core_call_free(st, task->call);
    Py_XDECREF(task->future);
    Py_XDECREF(task->lane);
    Py_DECREF(task->pool);
    free(task);
    core_state_drop(st);
}

static void set_exception(const struct task *task, PyObject *exception)
{
    const struct core_native_state *native = &task->pool->st->native;

    Py_XDECREF(PyObject_CallMethodOneArg(task->future, native->str_set_exception, exception));
    drop_error(task);
}

/* The pool was closed before it began. */
static void cancel(const struct task *task)
{
    Py_XDECREF(PyObject_CallMethod(task->future, "cancel", NULL));
    drop_error(task);
}

/* Whether it is to be run: nobody has cancelled it. */
static bool is_wanted(const struct task *task)
{
    const struct core_native_state *native = &task->pool->st->native;
    PyObject *answer = PyObject_CallMethodNoArgs(task->future, native->str_notify);
    bool wanted = answer == Py_True;

    drop_error(task);
    Py_XDECREF(answer);
    return wanted;
}

static void invoke(const struct task *task)
{
    const struct core_native_state *native = &task->pool->st->native;
    struct core_call *call = task->call;

    core_call_invoke(call);
    if (call->raised) {
        set_exception(task, call->outcome);
        return;
    }
    Py_XDECREF(PyObject_CallMethodOneArg(task->future, native->str_set_result, call->outcome));
    drop_error(task);
}

static void fail_broken(const struct task *task)
{
    PyObject *error;

    core_raise_broken_pool(task->pool->st);
    error = core_take_exception();
    set_exception(task, error);
    Py_DECREF(error);
}

static void run_task(struct rt_job *job, struct rt_worker *worker)
{
    struct task *task = RT_CONTAINER_OF(job, struct task, job);
    struct core_host *host = task->pool->st->native.host;

    if (!core_host_enter(worker, task->pool))
        return; /* the interpreter has ended: what it refers to is gone, or soon is */
    if (job->err != RT_OK)
        cancel(task);
    if (is_wanted(task)) {
        if (task->pool->broken)
            fail_broken(task);
        else
            invoke(task);
    }
    free_task(task);
    atomic_fetch_sub(&host->submitted, 1);
    core_host_share(worker);
}

/* As ThreadPoolExecutor.submit() words it. */
static int refuse(const struct core_host *host, const struct core_pool *pool)
{
    if (pool->broken)
        return core_raise_broken_pool(pool->st);
    if (rt_pool_state(pool->rt) >= RT_POOL_DRAINING)
        PyErr_SetString(PyExc_RuntimeError, "cannot schedule new futures after shutdown");
    else if (host->exiting)
        PyErr_SetString(PyExc_RuntimeError,
                        "cannot schedule new futures after interpreter shutdown");
    else
        return 0;
    return -1;
}

static int send(struct task *task)
{
    if (task->lane != NULL)
        return core_lane_submit(task->lane, &task->job);
    return rt_pool_submit(task->pool->rt, &task->job);
}

PyObject *core_executor_submit(const struct core_way *way, PyObject *const *args,
                               Py_ssize_t nargs, PyObject *kwnames)
{
    struct core_pool *pool = way->pool;
    struct core_state *st = pool->st;
    struct core_host *host = st->native.host;
    PyObject *future = NULL;
    struct task *task;
    int err;

    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "submit() needs a function to call");
        return NULL;
    }
    if (core_pool_check_fork(pool) < 0 || refuse(host, pool) < 0)
        return NULL;
    task = calloc(1, sizeof *task);
    if (task == NULL)
        return PyErr_NoMemory();
    task->call = core_call_new(st, args, nargs, kwnames);
    if (task->call == NULL) {
        free(task);
        return NULL;
    }
    rt_job_init(&task->job, NULL, RT_NEVER);
    task->job.run = run_task;
    task->job.hosted = true;
    task->pool = (struct core_pool *)Py_NewRef((PyObject *)pool);
    task->lane = (struct core_lane *)Py_XNewRef((PyObject *)way->lane);
    if (st->native.executor_future == NULL)
        PyErr_SetString(PyExc_RuntimeError, "offloop._core is being unloaded");
    else
        future = PyObject_CallNoArgs(st->native.executor_future);
    if (future == NULL) {
        free_task(task);
        return NULL;
    }
    task->future = Py_NewRef(future);
    atomic_fetch_add(&host->submitted, 1);
    err = send(task);
    if (err == RT_OK)
        return future;
    atomic_fetch_sub(&host->submitted, 1);
    free_task(task);
    Py_DECREF(future);
    if (refuse(host, pool) == 0)
        core_raise_call_err(st, err);
    return NULL;
}
