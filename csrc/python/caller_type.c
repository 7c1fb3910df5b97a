#include "caller_type.h"

#include <structmember.h>

#include "call.h"
#include "errors.h"
#include "executor.h"
#include "pool_type.h"

struct core_caller {
    PyObject_HEAD
    struct core_state *st;
    struct core_pool *pool; /* owned */
    struct core_lane *lane; /* owned, or NULL */
    uint64_t timeout;
    PyObject *interrupt;    /* owned, or NULL */
    PyObject *dict;
};

/* ---- Lane --------------------------------------------------------------------------------- */

/* The native lane, made if need be: 0 or an enum rt_err. */
static int open_lane(struct core_lane *lane)
{
    struct core_pool *pool = lane->pool;

    if (lane->rt != NULL && lane->generation == pool->generation)
        return RT_OK;
    lane->rt = NULL; /* the parent's */
    lane->generation = pool->generation;
    return rt_lane_new(pool->rt, lane->pinned, &lane->rt);
}

int core_lane_submit(struct core_lane *lane, struct rt_job *job)
{
    int err = open_lane(lane);

    return err != RT_OK ? err : rt_lane_submit(lane->rt, job);
}

int core_lane_submit_all(struct core_lane *lane, struct rt_joblist *jobs)
{
    int err = open_lane(lane);

    return err != RT_OK ? err : rt_lane_submit_all(lane->rt, jobs);
}

static PyObject *lane_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "pool", "pinned", NULL };
    struct core_state *st = core_state_of_type(type);
    struct core_lane *lane;
    PyObject *pool;
    int pinned = 0;

    if (st == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!|$p:Lane", names,
                                                   st->native.pool_type, &pool, &pinned))
        return NULL;
    lane = (struct core_lane *)type->tp_alloc(type, 0);
    if (lane == NULL)
        return NULL;
    lane->st = core_state_hold(st);
    lane->pool = (struct core_pool *)Py_NewRef(pool);
    lane->pinned = pinned != 0;
    return (PyObject *)lane;
}

static struct core_way lane_way(PyObject *op)
{
    struct core_lane *lane = (struct core_lane *)op;

    return (struct core_way){ .self = op, .pool = lane->pool, .lane = lane, .timeout = RT_NEVER };
}

static PyObject *lane_call(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames)
{
    const struct core_way way = lane_way(op);

    return core_call_start(&way, args, nargs, kwnames);
}

static PyObject *lane_call_all(PyObject *op, PyObject *calls)
{
    const struct core_way way = lane_way(op);

    return core_call_start_all(&way, calls);
}

static PyObject *lane_submit(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    const struct core_way way = lane_way(op);

    return core_executor_submit(&way, args, nargs, kwnames);
}

static PyObject *lane_get_pool(PyObject *op, void *unused)
{
    (void)unused;
    return Py_NewRef((PyObject *)((struct core_lane *)op)->pool);
}

static PyObject *lane_get_pinned(PyObject *op, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((struct core_lane *)op)->pinned);
}

static PyObject *lane_get_pending(PyObject *op, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(((struct core_lane *)op)->pending);
}

static int lane_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_lane *lane = (struct core_lane *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(lane->pool);
    Py_VISIT(lane->dict);
    return 0;
}

static int lane_clear(PyObject *op)
{
    /* The pool stays: it says whether the native lane is ours. */
    Py_CLEAR(((struct core_lane *)op)->dict);
    return 0;
}

static void lane_dealloc(PyObject *op)
{
    struct core_lane *lane = (struct core_lane *)op;
    struct core_state *st = lane->st;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    if (lane->weakrefs != NULL)
        PyObject_ClearWeakRefs(op);
    (void)lane_clear(op);
    if (lane->rt != NULL && !rt_pool_forked(lane->rt->pool))
        rt_lane_release(lane->rt);
    Py_CLEAR(lane->pool);
    type->tp_free(op);
    Py_DECREF(type);
    core_state_drop(st);
}

#define CALL_DOC "call($self, fn, /, *args, **kwargs)\n--\n\n"
#define VECTOR(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef lane_methods[] = {
    { "call", VECTOR(lane_call), METH_FASTCALL | METH_KEYWORDS,
      CALL_DOC "Call fn(*args, **kwargs) on a worker, after what the lane has to do before." },
    { "_call_all", lane_call_all, METH_O,
      "_call_all($self, calls, /)\n--\n\nThe futures of many calls, each (fn, args)." },
    { "submit", VECTOR(lane_submit), METH_FASTCALL | METH_KEYWORDS,
      "submit($self, fn, /, *args, **kwargs)\n--\n\n"
      "The same as a concurrent.futures.Future." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef lane_getset[] = {
    { "pool", lane_get_pool, NULL, "The pool whose workers run the calls.", NULL },
    { "pinned", lane_get_pinned, NULL, "Whether one and the same thread runs them.", NULL },
    { "pending", lane_get_pending, NULL,
      "How many awaited calls are not over, those that were given up included.", NULL },
    { "__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyMemberDef lane_members[] = {
    { "__weaklistoffset__", T_PYSSIZET, offsetof(struct core_lane, weakrefs), READONLY, NULL },
    { "__dictoffset__", T_PYSSIZET, offsetof(struct core_lane, dict), READONLY, NULL },
    { NULL, 0, 0, 0, NULL },
};

static PyType_Slot lane_slots[] = {
    { Py_tp_doc, "Lane(pool, *, pinned=False)\n--\n\n"
                 "Calls that run in order and never two at once." },
    { Py_tp_new, lane_new },
    { Py_tp_dealloc, lane_dealloc },
    { Py_tp_traverse, lane_traverse },
    { Py_tp_clear, lane_clear },
    { Py_tp_methods, lane_methods },
    { Py_tp_getset, lane_getset },
    { Py_tp_members, lane_members },
    { 0, NULL },
};

PyType_Spec core_lane_spec = {
    .name = "offloop._core.Lane",
    .basicsize = sizeof(struct core_lane),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = lane_slots,
};

/* ---- Caller ------------------------------------------------------------------------------- */

static PyObject *caller_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "way", "timeout", "interrupt", NULL };
    struct core_state *st = core_state_of_type(type);
    PyObject *way, *seconds, *interrupt = Py_None;
    struct core_caller *caller;
    struct core_pool *pool = NULL;
    struct core_lane *lane = NULL;
    uint64_t timeout;

    if (st == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:Caller", names, &way, &seconds,
                                     &interrupt) ||
        !core_timeout_of(seconds, &timeout))
        return NULL;
    if (interrupt != Py_None && !PyCallable_Check(interrupt)) {
        PyErr_SetString(PyExc_TypeError, "Caller: interrupt must be callable or None");
        return NULL;
    }
    if (PyObject_TypeCheck(way, st->native.lane_type)) {
        lane = (struct core_lane *)way;
        pool = lane->pool;
    } else if (PyObject_TypeCheck(way, st->native.pool_type)) {
        pool = (struct core_pool *)way;
    } else {
        PyErr_SetString(PyExc_TypeError, "Caller: a Pool or a Lane is wanted");
        return NULL;
    }
    caller = (struct core_caller *)type->tp_alloc(type, 0);
    if (caller == NULL)
        return NULL;
    caller->st = core_state_hold(st);
    caller->pool = (struct core_pool *)Py_NewRef((PyObject *)pool);
    caller->lane = (struct core_lane *)Py_XNewRef((PyObject *)lane);
    caller->timeout = timeout;
    caller->interrupt = interrupt != Py_None ? Py_NewRef(interrupt) : NULL;
    return (PyObject *)caller;
}

static struct core_way caller_way(PyObject *op)
{
    struct core_caller *caller = (struct core_caller *)op;

    return (struct core_way){
        .self = op,
        .pool = caller->pool,
        .lane = caller->lane,
        .timeout = caller->timeout,
        .interrupt = caller->interrupt,
    };
}

static PyObject *caller_call(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    const struct core_way way = caller_way(op);

    return core_call_start(&way, args, nargs, kwnames);
}

static PyObject *caller_call_all(PyObject *op, PyObject *calls)
{
    const struct core_way way = caller_way(op);

    return core_call_start_all(&way, calls);
}

static PyObject *caller_get_pool(PyObject *op, void *unused)
{
    (void)unused;
    return Py_NewRef((PyObject *)((struct core_caller *)op)->pool);
}

static PyObject *caller_get_timeout(PyObject *op, void *unused)
{
    uint64_t timeout = ((struct core_caller *)op)->timeout;

    (void)unused;
    if (timeout == RT_NEVER)
        Py_RETURN_NONE;
    return PyFloat_FromDouble((double)timeout / 1e9);
}

static int caller_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_caller *caller = (struct core_caller *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(caller->pool);
    Py_VISIT(caller->lane);
    Py_VISIT(caller->interrupt);
    Py_VISIT(caller->dict);
    return 0;
}

static int caller_clear(PyObject *op)
{
    /* Pool and lane stay, as it may be called still: they hold no Caller. */
    Py_CLEAR(((struct core_caller *)op)->interrupt);
    Py_CLEAR(((struct core_caller *)op)->dict);
    return 0;
}

static void caller_dealloc(PyObject *op)
{
    struct core_caller *caller = (struct core_caller *)op;
    struct core_state *st = caller->st;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    (void)caller_clear(op);
    Py_CLEAR(caller->lane);
    Py_CLEAR(caller->pool);
    type->tp_free(op);
    Py_DECREF(type);
    core_state_drop(st);
}

static PyMethodDef caller_methods[] = {
    { "call", VECTOR(caller_call), METH_FASTCALL | METH_KEYWORDS,
      CALL_DOC "Call fn(*args, **kwargs) on a worker, within the Caller's time." },
    { "_call_all", caller_call_all, METH_O,
      "_call_all($self, calls, /)\n--\n\nThe futures of many calls, each (fn, args)." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef caller_getset[] = {
    { "pool", caller_get_pool, NULL, "The pool whose workers run the calls.", NULL },
    { "timeout", caller_get_timeout, NULL, "Seconds for each call, or None.", NULL },
    { "__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyMemberDef caller_members[] = {
    { "__dictoffset__", T_PYSSIZET, offsetof(struct core_caller, dict), READONLY, NULL },
    { NULL, 0, 0, 0, NULL },
};

static PyType_Slot caller_slots[] = {
    { Py_tp_doc, "Caller(way, timeout, interrupt=None)\n--\n\n"
                 "A pool or a lane, with a limit in time for each call." },
    { Py_tp_new, caller_new },
    { Py_tp_dealloc, caller_dealloc },
    { Py_tp_traverse, caller_traverse },
    { Py_tp_clear, caller_clear },
    { Py_tp_methods, caller_methods },
    { Py_tp_getset, caller_getset },
    { Py_tp_members, caller_members },
    { 0, NULL },
};

PyType_Spec core_caller_spec = {
    .name = "offloop._core.Caller",
    .basicsize = sizeof(struct core_caller),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = caller_slots,
};
