#include "listen.h"

#include "../redis/rds_lease.h"
#include "errors.h"
#include "future.h"
#include "messages.h"

struct core_messages {
    PyObject_HEAD
    struct core_state *st;
    PyObject *pubsub;    /* owned */
    struct core_ear ear;
    bool plain;          /* `subscribed` is redis-py's */
    bool over;           /* it was closed, or an error ended it */
    const void *running; /* the step that is under way, or NULL */
};

enum step_state {
    STEP_NEW = 0,
    STEP_RUNNING,
    STEP_DONE,
};

struct core_step {
    PyObject_HEAD
    struct core_messages *messages; /* owned */
    PyObject *awaited;              /* owned: a Future, or a coroutine; or NULL */
    enum step_state state;
};

/* ---- one step ------------------------------------------------------------------------------- */

static bool is_future(const struct core_step *step)
{
    return Py_IS_TYPE(step->awaited, step->messages->st->future.type);
}

/* The step is over.  failed: and the iterator with it. */
static void end(struct core_step *step, bool failed)
{
    struct core_messages *m = step->messages;

    if (step->state == STEP_RUNNING)
        m->running = NULL;
    m->over = m->over || failed;
    step->state = STEP_DONE;
    Py_CLEAR(step->awaited);
}

/* 1, 0 or -1 with an exception set. */
static int has_any(PyObject *pubsub, PyObject *name)
{
    PyObject *subscriptions = Py_XNewRef(core_own_value(pubsub, name));
    int any = -1;

    if (subscriptions == NULL && !PyErr_Occurred())
        subscriptions = PyObject_GetAttr(pubsub, name);
    if (subscriptions != NULL)
        any = PyObject_IsTrue(subscriptions);
    Py_XDECREF(subscriptions);
    return any;
}

static int is_subscribed(const struct core_messages *m)
{
    const struct core_native_state *n = &m->st->native;
    int any;

    if (!m->plain) {
        PyObject *subscribed = PyObject_GetAttr(m->pubsub, n->str_subscribed);

        any = subscribed == NULL ? -1 : PyObject_IsTrue(subscribed);
        Py_XDECREF(subscribed);
        return any;
    }
    any = has_any(m->pubsub, n->str_channels);
    if (any == 0)
        any = has_any(m->pubsub, n->str_patterns);
    return any == 0 ? has_any(m->pubsub, n->str_shard_channels) : any;
}

/* Whether what was waited for has come.  redis-py asks what it is subscribed to before it
 * waits, and not again. */
static bool has_come(const struct core_messages *m)
{
    return m->ear.lease != NULL && core_lease_usable(m->ear.lease) &&
           rds_held_ready(m->ear.lease->rds);
}

/* Look for a message: *out is it, or the step has something to await.  waited: for news
 * of the lease, just now.  0, or -1 with an exception set. */
static int look(struct core_step *step, bool waited, PyObject **out)
{
    struct core_messages *m = step->messages;
    PyObject *found;
    int subscribed = 0;

    if (m->pubsub != NULL) /* or the collector has it */
        subscribed = waited && has_come(m) ? 1 : is_subscribed(m);
    if (subscribed == 0)
        PyErr_SetNone(PyExc_StopAsyncIteration);
    if (subscribed <= 0)
        return -1;
    found = core_message_next(m->st, m->pubsub, Py_None, &m->ear);
    if (found == NULL)
        return -1;
    if (PyDict_CheckExact(found)) {
        *out = found;
        return 0;
    }
    if (!Py_IS_TYPE(found, m->st->future.type)) {
        Py_SETREF(found,
                  PyObject_CallMethodOneArg(m->pubsub, m->st->native.str_receive, found));
        if (found != NULL && !PyCoro_CheckExact(found)) {
            PyErr_SetString(PyExc_TypeError, "PubSub._receive() has to be a coroutine");
            Py_CLEAR(found);
        }
    }
    step->awaited = found;
    return found == NULL ? -1 : 0;
}

static int start(struct core_step *step)
{
    struct core_messages *m = step->messages;

    if (step->state == STEP_DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited __anext__()");
        return -1;
    }
    if (m->running != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "another task is listening already");
        return -1;
    }
    step->state = STEP_RUNNING;
    m->running = step;
    if (m->over)
        PyErr_SetNone(PyExc_StopAsyncIteration);
    return m->over ? -1 : 0;
}

/* What the awaited gave at last, taken; a message is put into *out. */
static void take_result(struct core_step *step, PyObject *result, PyObject **out)
{
    bool is_message = !is_future(step) && result != Py_None;

    Py_CLEAR(step->awaited);
    *out = is_message ? result : NULL;
    if (!is_message)
        Py_DECREF(result);
}

/* Go on, after *out, until there is a message or something to wait for. */
static PySendResult advance(struct core_step *step, PyObject *arg, PyObject **out)
{
    bool waited = false;
    PyObject *result;

    while (*out == NULL) {
        PySendResult sent;

        if (step->awaited == NULL) {
            if (look(step, waited, out) < 0)
                goto failed;
            continue;
        }
        sent = is_future(step) ? core_future_am_send(step->awaited, arg, &result)
                               : PyIter_Send(step->awaited, arg, &result);
        if (sent == PYGEN_ERROR)
            goto failed;
        if (sent == PYGEN_NEXT) {
            *out = result;
            return PYGEN_NEXT;
        }
        waited = is_future(step);
        take_result(step, result, out);
        arg = Py_None;
    }
    end(step, false);
    return PYGEN_RETURN;
failed:
    end(step, true);
    return PYGEN_ERROR;
}

static PySendResult step_am_send(PyObject *op, PyObject *arg, PyObject **out)
{
    struct core_step *step = (struct core_step *)op;

    *out = NULL;
    if (step->state != STEP_RUNNING && start(step) < 0) {
        end(step, false);
        return PYGEN_ERROR;
    }
    return advance(step, arg, out);
}

/* As send() and __next__() give what a PySendResult says. */
static PyObject *as_iterator(PySendResult sent, PyObject *out)
{
    if (sent == PYGEN_RETURN) {
        core_coro_return(out);
        Py_CLEAR(out);
    }
    return sent == PYGEN_ERROR ? NULL : out;
}

static PyObject *step_send(PyObject *op, PyObject *arg)
{
    PyObject *out = NULL;
    PySendResult sent = step_am_send(op, arg, &out);

    return as_iterator(sent, out);
}

static PyObject *step_next(PyObject *op)
{
    return step_send(op, Py_None);
}

/* The coroutine that the step drives has been thrown something. */
static PyObject *throw_on(struct core_step *step, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *throw = PyObject_GetAttrString(step->awaited, "throw"), *given = NULL;
    PyObject *stop, *result = NULL, *out = NULL;

    if (throw != NULL)
        given = PyObject_Vectorcall(throw, args, (size_t)nargs, NULL);
    Py_XDECREF(throw);
    if (given != NULL)
        return given; /* it waits for something else now */
    if (PyErr_ExceptionMatches(PyExc_StopIteration)) {
        stop = core_take_exception();
        result = PyObject_GetAttrString(stop, "value");
        Py_DECREF(stop);
    }
    if (result == NULL) {
        end(step, true);
        return NULL;
    }
    take_result(step, result, &out);
    return as_iterator(advance(step, Py_None, &out), out);
}

static PyObject *step_throw(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct core_step *step = (struct core_step *)op;

    if (step->awaited != NULL && !is_future(step))
        return throw_on(step, args, nargs);
    if (step->awaited != NULL)
        (void)core_future_throw(step->awaited, args, nargs);
    else
        (void)core_coro_throw(args, nargs);
    end(step, step->state != STEP_DONE);
    return NULL;
}

static PyObject *step_close(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    struct core_step *step = (struct core_step *)op;
    PyObject *closed = NULL;

    if (step->awaited != NULL && !is_future(step)) {
        closed = PyObject_CallMethod(step->awaited, "close", NULL);
        if (closed == NULL)
            return NULL;
        Py_DECREF(closed);
    }
    end(step, step->state == STEP_RUNNING);
    Py_RETURN_NONE;
}

static int step_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_step *step = (struct core_step *)op;

    Py_VISIT(step->messages);
    Py_VISIT(step->awaited);
    Py_VISIT(Py_TYPE(op));
    return 0;
}

static int step_clear(PyObject *op)
{
    Py_CLEAR(((struct core_step *)op)->awaited);
    return 0;
}

static void step_dealloc(PyObject *op)
{
    struct core_step *step = (struct core_step *)op;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    end(step, step->state == STEP_RUNNING);
    Py_DECREF(step->messages);
    PyObject_GC_Del(op);
    Py_DECREF(type);
}

static PyMethodDef step_methods[] = {
    { "send", step_send, METH_O, "send($self, value, /)\n--\n\nGo on." },
    { "throw", (PyCFunction)(void (*)(void))step_throw, METH_FASTCALL,
      "throw($self, typ, val=None, tb=None, /)\n--\n\nRaise it where it waits." },
    { "close", step_close, METH_NOARGS, "close($self, /)\n--\n\nGive it up." },
    { NULL, NULL, 0, NULL },
};

static PyType_Slot step_slots[] = {
    { Py_tp_doc, "The awaitable of a subscriber's next message." },
    { Py_tp_dealloc, step_dealloc },
    { Py_tp_traverse, step_traverse },
    { Py_tp_clear, step_clear },
    { Py_tp_methods, step_methods },
    { Py_tp_iter, PyObject_SelfIter },
    { Py_tp_iternext, step_next },
    { Py_am_await, PyObject_SelfIter },
    { Py_am_send, step_am_send },
    { 0, NULL },
};

PyType_Spec core_next_message_spec = {
    .name = "offloop._core._NextMessage",
    .basicsize = sizeof(struct core_step),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = step_slots,
};

/* ---- Messages --------------------------------------------------------------------------------- */

static PyObject *messages_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "pubsub", "plain", NULL };
    struct core_state *st = core_state_of_type(type);
    struct core_messages *m;
    PyObject *pubsub;
    int plain;

    if (st == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "Op:Messages", names, &pubsub, &plain))
        return NULL;
    m = (struct core_messages *)type->tp_alloc(type, 0);
    if (m == NULL)
        return NULL;
    m->st = core_state_hold(st);
    m->pubsub = Py_NewRef(pubsub);
    m->plain = plain != 0;
    return (PyObject *)m;
}

static PyObject *messages_anext(PyObject *op)
{
    struct core_messages *m = (struct core_messages *)op;
    struct core_step *step = PyObject_GC_New(struct core_step, m->st->native.next_message_type);

    if (step == NULL)
        return NULL;
    step->messages = (struct core_messages *)Py_NewRef(op);
    step->awaited = NULL;
    step->state = STEP_NEW;
    PyObject_GC_Track(step);
    return (PyObject *)step;
}

static PyObject *messages_stop(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    struct core_messages *m = (struct core_messages *)op;

    if (m->running != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a task is listening still");
        return NULL;
    }
    m->over = true;
    Py_RETURN_NONE;
}

static int messages_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_messages *m = (struct core_messages *)op;

    Py_VISIT(m->pubsub);
    Py_VISIT(m->ear.lease);
    Py_VISIT(Py_TYPE(op));
    return 0;
}

static int messages_clear(PyObject *op)
{
    struct core_messages *m = (struct core_messages *)op;

    Py_CLEAR(m->pubsub);
    Py_CLEAR(m->ear.lease);
    return 0;
}

static void messages_dealloc(PyObject *op)
{
    struct core_messages *m = (struct core_messages *)op;
    PyTypeObject *type = Py_TYPE(op);
    struct core_state *st = m->st;

    PyObject_GC_UnTrack(op);
    (void)messages_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
    core_state_drop(st);
}

static PyMethodDef messages_methods[] = {
    { "_stop", messages_stop, METH_NOARGS,
      "_stop($self, /)\n--\n\nThere are no more.  RuntimeError while a task waits for one." },
    { NULL, NULL, 0, NULL },
};

static PyType_Slot messages_slots[] = {
    { Py_tp_doc, "The messages of a PubSub, one after the other." },
    { Py_tp_new, messages_new },
    { Py_tp_dealloc, messages_dealloc },
    { Py_tp_traverse, messages_traverse },
    { Py_tp_clear, messages_clear },
    { Py_tp_methods, messages_methods },
    { Py_am_aiter, PyObject_SelfIter },
    { Py_am_anext, messages_anext },
    { 0, NULL },
};

PyType_Spec core_messages_spec = {
    .name = "offloop._core.Messages",
    .basicsize = sizeof(struct core_messages),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = messages_slots,
};
