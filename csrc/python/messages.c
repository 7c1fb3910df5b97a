#include "messages.h"

#include "../redis/rds_lease.h"
#include "lease_type.h"
#include "observed.h"
#include "reply.h"

#define STREAK 64 /* messages in a row before others on the loop have their turn */
#define LOG_DEBUG 10

/* _setup_pubsub(hooks, read_response, log): what may be left out as long as it is
 * redis-py's own, and Connection's. */
static PyObject *setup_pubsub(PyObject *module, PyObject *args)
{
    struct core_native_state *n = &core_state_of(module)->native;
    PyObject *hooks, *read_response, *log;
    Py_ssize_t i;

    if (!PyArg_ParseTuple(args, "O!OO:_setup_pubsub", &PyTuple_Type, &hooks, &read_response, &log))
        return NULL;
    for (i = 0; i < PyTuple_GET_SIZE(hooks); i++) {
        PyObject *pair = PyTuple_GET_ITEM(hooks, i);

        if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
            PyErr_SetString(PyExc_TypeError, "pairs of a name and a function are wanted");
            return NULL;
        }
    }
    Py_XSETREF(n->pubsub_hooks, Py_NewRef(hooks));
    Py_XSETREF(n->read_response, Py_NewRef(read_response));
    Py_XSETREF(n->push_log, Py_NewRef(log));
    Py_RETURN_NONE;
}

/* ---- whether it may be taken ---------------------------------------------------------------- */

/* Whether object's method of that name is function.  1, 0, or -1 with an exception. */
static int has_method(PyObject *object, PyObject *name, PyObject *function)
{
    PyObject *found = PyObject_GetAttr(object, name);
    int same;

    if (found == NULL)
        return -1;
    same = PyMethod_Check(found) && PyMethod_GET_FUNCTION(found) == function &&
           PyMethod_GET_SELF(found) == object;
    Py_DECREF(found);
    return same;
}

/* Whether object's attribute is value. */
static int has_value(PyObject *object, PyObject *name, PyObject *value)
{
    PyObject *found = PyObject_GetAttr(object, name);

    if (found == NULL)
        return -1;
    Py_DECREF(found); /* compared only */
    return found == value;
}

/* Whether pushes go to the parser's own handler, and that has nothing to log. */
static int pushes_plainly(const struct core_native_state *n, PyObject *parser)
{
    PyObject *pushed = PyObject_GetAttr(parser, n->str_pushed), *own = NULL, *level = NULL;
    PyObject *enabled;
    int plain = -1;

    if (pushed == NULL)
        return -1;
    own = PyObject_GetAttr(parser, n->str_handles_push);
    if (own == NULL)
        goto done;
    plain = PyMethod_Check(pushed) && PyMethod_Check(own) &&
            PyMethod_GET_FUNCTION(pushed) == PyMethod_GET_FUNCTION(own);
    if (plain != 1)
        goto done;
    level = PyObject_GetAttr(n->push_log, n->str_level);
    if (level == NULL) {
        plain = -1;
    } else if (PyLong_AsLong(level) <= LOG_DEBUG) {
        enabled = PyObject_CallMethod(n->push_log, "isEnabledFor", "i", LOG_DEBUG);
        plain = enabled == NULL ? -1 : PyObject_Not(enabled);
        Py_XDECREF(enabled);
    }
done:
    Py_XDECREF(level);
    Py_XDECREF(own);
    Py_DECREF(pushed);
    return plain;
}

/* Whether nobody reads from connection in a way of his own. */
static int is_plain_connection(const struct core_native_state *n, PyObject *connection)
{
    PyObject *health = PyObject_GetAttr(connection, n->str_health), *parser = NULL;
    int plain;

    if (health == NULL)
        return -1;
    plain = PyObject_Not(health);
    Py_DECREF(health);
    if (plain == 1)
        plain = has_method(connection, n->str_read_response, n->read_response);
    if (plain == 1) {
        parser = PyObject_GetAttr(connection, n->str_parser);
        plain = parser == NULL ? -1 : has_value(connection, n->str_own_parser, parser);
    }
    if (plain == 1 && PyObject_HasAttr(parser, n->str_pushed))
        plain = pushes_plainly(n, parser);
    Py_XDECREF(parser);
    return plain;
}

static int is_plain_pubsub(const struct core_native_state *n, PyObject *pubsub)
{
    Py_ssize_t i;
    int plain = n->pubsub_hooks == NULL ? 0 : has_value(pubsub, n->str_push_handler, Py_None);

    for (i = 0; plain == 1 && i < PyTuple_GET_SIZE(n->pubsub_hooks); i++) {
        PyObject *pair = PyTuple_GET_ITEM(n->pubsub_hooks, i);

        plain = has_method(pubsub, PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1));
    }
    return plain;
}

/* The lease of pubsub's connection, a new reference; NULL without an exception: there is
 * none. */
static PyObject *lease_of_pubsub(const struct core_native_state *n, PyObject *pubsub,
                                 PyObject **connection)
{
    PyObject *lease;

    *connection = PyObject_GetAttr(pubsub, n->str_connection);
    if (*connection == NULL)
        return NULL;
    lease = PyObject_GetAttr(*connection, n->str_lease);
    if (lease == NULL) {
        PyErr_Clear(); /* a connection of another kind, or None */
    } else if (!Py_IS_TYPE(lease, n->lease_type)) {
        Py_CLEAR(lease);
    }
    return lease;
}

/* ---- messages --------------------------------------------------------------------------------- */

/* What kind of message a reply is, borrowed, with *at behind that word; NULL: none. */
static PyObject *kind_of(const struct core_native_state *n, const struct rds_arena *arena,
                         uint32_t *at)
{
    struct rds_node head, word;

    if (!rds_reply_next(arena, at, &head) || (head.type != RDS_PUSH && head.type != RDS_ARRAY) ||
        head.len < 3 || head.len > 4 || !rds_reply_next(arena, at, &word) || word.type != RDS_STR)
        return NULL;
    if (head.len == 3 && word.len == 7 && memcmp(word.str, "message", 7) == 0)
        return n->str_message;
    if (head.len == 3 && word.len == 8 && memcmp(word.str, "smessage", 8) == 0)
        return n->str_smessage;
    if (head.len == 4 && word.len == 8 && memcmp(word.str, "pmessage", 8) == 0)
        return n->str_pmessage;
    return NULL;
}

/* One more item of message, from the reply.  0, or -1 with an exception set. */
static int add_item(struct core_lease *lease, PyObject *message, PyObject *name,
                    const struct rds_arena *arena, uint32_t *at)
{
    enum rds_type type;
    PyObject *value = core_reply_next(lease->channel, arena, at, false, &type);
    int rc = value == NULL ? -1 : PyDict_SetItem(message, name, value);

    Py_XDECREF(value);
    return rc;
}

/* A published message as the dict that redis-py makes of it. */
static PyObject *message_of(struct core_lease *lease, PyObject *kind,
                            const struct rds_arena *arena, uint32_t at)
{
    const struct core_native_state *n = &lease->st->native;
    PyObject *message = PyDict_New();

    if (message == NULL || PyDict_SetItem(message, n->str_type, kind) < 0 ||
        (kind == n->str_pmessage ? add_item(lease, message, n->str_pattern, arena, &at)
                                 : PyDict_SetItem(message, n->str_pattern, Py_None)) < 0 ||
        add_item(lease, message, n->str_channel, arena, &at) < 0 ||
        add_item(lease, message, n->str_data, arena, &at) < 0)
        Py_CLEAR(message);
    return message;
}

/* Message (taken) as _next_message() gives it: with its handler, if there is one. */
static PyObject *with_handler(const struct core_native_state *n, PyObject *pubsub, PyObject *kind,
                              PyObject *message)
{
    PyObject *where = kind == n->str_message    ? n->str_channels
                      : kind == n->str_pmessage ? n->str_patterns
                                                : n->str_shard_channels;
    PyObject *key = PyDict_GetItemWithError(message, kind == n->str_pmessage ? n->str_pattern
                                                                             : n->str_channel);
    PyObject *handlers = PyObject_GetAttr(pubsub, where), *handler = NULL, *result = NULL;
    int truth = 0;

    if (handlers == NULL || key == NULL)
        goto done;
    if (PyDict_CheckExact(handlers)) {
        handler = Py_XNewRef(PyDict_GetItemWithError(handlers, key));
        if (handler == NULL && PyErr_Occurred())
            goto done;
    } else {
        handler = PyObject_CallMethod(handlers, "get", "O", key);
        if (handler == NULL)
            goto done;
    }
    truth = handler == NULL ? 0 : PyObject_IsTrue(handler);
    if (truth == 0)
        result = Py_NewRef(message);
    else if (truth > 0)
        result = PyTuple_Pack(2, handler, message);
done:
    Py_XDECREF(handler);
    Py_XDECREF(handlers);
    Py_DECREF(message);
    return result;
}

/* The next reply of a lease that may be taken from. */
static PyObject *take(const struct core_native_state *n, PyObject *pubsub, struct core_lease *lease)
{
    struct rds_received *received = NULL;
    PyObject *kind, *value, *reply;
    uint32_t at = 0;
    const char *why;
    int err;

    if (!core_lease_usable(lease))
        Py_RETURN_NONE;
    err = rds_held_lost(lease->rds, &why); /* before the look: what came first is first */
    if (lease->streak >= STREAK) {
        lease->streak = 0;
        return Py_NewRef(Py_Ellipsis); /* waiting for what is there takes a turn of the loop */
    }
    received = rds_held_take(lease->rds);
    if (received == NULL) {
        lease->streak = 0;
        return Py_NewRef(err != RT_OK ? Py_None : Py_Ellipsis);
    }
    lease->streak++;
    kind = kind_of(n, &received->arena, &at);
    if (kind != NULL) {
        value = message_of(lease, kind, &received->arena, at);
        if (value != NULL)
            value = with_handler(n, pubsub, kind, value);
    } else {
        reply = core_lease_reply(lease, &received->arena, false);
        value = reply == NULL ? NULL : PyTuple_Pack(1, reply);
        Py_XDECREF(reply);
    }
    rds_received_free(received);
    return value;
}

static PyObject *next_message(PyObject *module, PyObject *pubsub)
{
    struct core_state *st = core_state_of(module);
    const struct core_native_state *n = &st->native;
    PyObject *connection, *lease = lease_of_pubsub(n, pubsub, &connection), *value = NULL;
    int plain = lease == NULL ? 0 : is_plain_pubsub(n, pubsub);

    if (plain == 1)
        plain = is_plain_connection(n, connection);
    if (plain == 1 && core_observed(st, true) != 0) {
        PyErr_Clear(); /* redis-py will meet it as well */
        plain = 0;
    }
    if (plain == 1) {
        value = take(n, pubsub, (struct core_lease *)lease);
    } else if (connection != NULL && (plain == 0 || PyErr_ExceptionMatches(PyExc_AttributeError))) {
        PyErr_Clear(); /* something is not as usual: redis-py's way */
        value = Py_NewRef(Py_None);
    }
    Py_XDECREF(lease);
    Py_XDECREF(connection);
    return value;
}

static PyObject *wait_message(PyObject *module, PyObject *args)
{
    const struct core_native_state *n = &core_state_of(module)->native;
    PyObject *pubsub, *timeout, *connection, *lease, *fut = NULL;

    if (!PyArg_UnpackTuple(args, "_wait_message", 2, 2, &pubsub, &timeout))
        return NULL;
    lease = lease_of_pubsub(n, pubsub, &connection);
    if (lease != NULL)
        fut = core_lease_wait(lease, timeout);
    else if (!PyErr_Occurred())
        PyErr_SetString(n->connection_error, "Connection closed by server.");
    Py_XDECREF(lease);
    Py_XDECREF(connection);
    return fut;
}

PyMethodDef core_messages_functions[] = {
    { "_setup_pubsub", setup_pubsub, METH_VARARGS,
      "_setup_pubsub($module, hooks, read_response, log, /)\n--\n\n"
      "Tell which methods may be left out as long as nobody has replaced them." },
    { "_next_message", next_message, METH_O,
      "_next_message($module, pubsub, /)\n--\n\n"
      "A published message, a dict; (handler, message), where it has one; (reply,), which is\n"
      "something else; Ellipsis: wait for it; None: ask redis-py." },
    { "_wait_message", wait_message, METH_VARARGS,
      "_wait_message($module, pubsub, timeout, /)\n--\n\n"
      "The awaitable of there being one: False when there is none in time." },
    { NULL, NULL, 0, NULL },
};
