#include "messages.h"

#include "../redis/rds_lease.h"
#include "observed.h"
#include "reply.h"

#define STREAK 64 /* messages in a row before others on the loop have their turn */
#define TRUSTED 64 /* messages until a listener's connection is looked at again */
#define LOG_DEBUG 10

/* _setup_pubsub(hooks, read_response, log, known): what may be left out as long as it is
 * redis-py's own, and Connection's. */
static PyObject *setup_pubsub(PyObject *module, PyObject *args)
{
    struct core_native_state *n = &core_state_of(module)->native;
    PyObject *hooks, *read_response, *log, *known, *level;
    Py_ssize_t i;

    if (!PyArg_ParseTuple(args, "O!OOO:_setup_pubsub", &PyTuple_Type, &hooks, &read_response,
                          &log, &known))
        return NULL;
    for (i = 0; i < PyTuple_GET_SIZE(hooks); i++) {
        PyObject *pair = PyTuple_GET_ITEM(hooks, i);

        if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
            PyErr_SetString(PyExc_TypeError, "pairs of a name and a function are wanted");
            return NULL;
        }
    }
    level = PyLong_FromLong(LOG_DEBUG);
    if (level == NULL)
        return NULL;
    Py_XSETREF(n->pubsub_hooks, Py_NewRef(hooks));
    Py_XSETREF(n->read_response, Py_NewRef(read_response));
    Py_XSETREF(n->push_log, Py_NewRef(log));
    Py_XSETREF(n->push_log_known, Py_NewRef(known));
    Py_XSETREF(n->debug_level, level);
    Py_RETURN_NONE;
}

/* ---- whether it may be taken ---------------------------------------------------------------- */

PyObject *core_own_value(PyObject *obj, PyObject *name)
{
    PyObject **dict = _PyObject_GetDictPtr(obj), *found = NULL;

    if (dict != NULL && *dict != NULL)
        found = PyDict_GetItemWithError(*dict, name);
    if (found == NULL && !PyErr_Occurred())
        found = _PyType_Lookup(Py_TYPE(obj), name);
    return found;
}

/* Whether a push is written to redis-py's log.  What the logger has found out before,
 * which it forgets when any logger is set to something else, is looked at first. */
static bool is_logged(const struct core_native_state *n)
{
    PyObject *enabled = NULL;
    bool logged;

    if (PyDict_CheckExact(n->push_log_known))
        enabled = Py_XNewRef(PyDict_GetItemWithError(n->push_log_known, n->debug_level));
    if (enabled == NULL && !PyErr_Occurred())
        enabled = PyObject_CallMethod(n->push_log, "isEnabledFor", "O", n->debug_level);
    logged = enabled == NULL || PyObject_Not(enabled) != 1;
    Py_XDECREF(enabled);
    return logged;
}

/* Whether nobody reads from connection in a way of his own: its read_response is
 * Connection's, there are no health checks, its parser is the one that it was made with,
 * and that hands pushes to nobody, nor to a log. */
static bool is_plain_connection(const struct core_native_state *n, PyObject *connection)
{
    PyObject *health, *parser, *pushed;
    bool plain;

    if (core_own_value(connection, n->str_read_response) != n->read_response)
        return false;
    health = PyObject_GetAttr(connection, n->str_health); /* a slot of the class's */
    if (health == NULL)
        return false;
    plain = PyObject_Not(health) == 1;
    Py_DECREF(health);
    parser = plain ? PyObject_GetAttr(connection, n->str_parser) : NULL;
    if (parser == NULL)
        return false;
    plain = core_own_value(connection, n->str_own_parser) == parser;
    Py_DECREF(parser); /* the connection has it */
    if (!plain)
        return false;
    pushed = core_own_value(parser, n->str_pushed);
    if (pushed == NULL)
        return !PyErr_Occurred(); /* RESP2: there are no pushes */
    if (!PyMethod_Check(pushed) ||
        PyMethod_GET_FUNCTION(pushed) != _PyType_Lookup(Py_TYPE(parser), n->str_handles_push))
        return false;
    return !is_logged(n);
}

/* Whether the methods of a PubSub that was looked at before are what they were: of one
 * and the same class, and the object has no attribute more. */
static bool is_as_before(const struct core_ear *ear, PyObject *pubsub)
{
    PyObject **dict = _PyObject_GetDictPtr(pubsub);

    return ear->version != 0 && ear->version == Py_TYPE(pubsub)->tp_version_tag &&
           dict != NULL && *dict != NULL && PyDict_GET_SIZE(*dict) == ear->attributes;
}

static bool is_plain_pubsub(const struct core_native_state *n, PyObject *pubsub,
                            struct core_ear *ear)
{
    PyObject **dict;
    Py_ssize_t i;

    if (n->pubsub_hooks == NULL || core_own_value(pubsub, n->str_push_handler) != Py_None)
        return false;
    if (is_as_before(ear, pubsub))
        return true;
    for (i = 0; i < PyTuple_GET_SIZE(n->pubsub_hooks); i++) {
        PyObject *pair = PyTuple_GET_ITEM(n->pubsub_hooks, i);

        if (core_own_value(pubsub, PyTuple_GET_ITEM(pair, 0)) != PyTuple_GET_ITEM(pair, 1))
            return false;
    }
    dict = _PyObject_GetDictPtr(pubsub);
    ear->version = Py_TYPE(pubsub)->tp_version_tag;
    ear->attributes = dict != NULL && *dict != NULL ? PyDict_GET_SIZE(*dict) : -1;
    return true;
}

/* pubsub's connection and its lease, both borrowed; NULL: there is none of ours. */
static struct core_lease *lease_of(const struct core_native_state *n, PyObject *pubsub,
                                   PyObject **connection, struct core_ear *ear)
{
    PyObject *found = NULL;

    *connection = core_own_value(pubsub, n->str_connection);
    /* A lease that is open is its connection's still. */
    if (ear->lease != NULL && ear->connection == *connection && core_lease_usable(ear->lease))
        return ear->lease;
    if (*connection != NULL && *connection != Py_None)
        found = core_own_value(*connection, n->str_lease);
    if (found == NULL || !Py_IS_TYPE(found, n->lease_type) ||
        !core_lease_usable((struct core_lease *)found))
        return NULL;
    ear->connection = *connection;
    ear->trusted = 0;
    Py_XSETREF(ear->lease, (struct core_lease *)Py_NewRef(found));
    return ear->lease;
}

/* The lease to take pubsub's messages from, borrowed; NULL: redis-py has to. */
static struct core_lease *plain_lease(struct core_state *st, PyObject *pubsub,
                                      struct core_ear *ear)
{
    const struct core_native_state *n = &st->native;
    PyObject *connection;
    struct core_lease *lease = lease_of(n, pubsub, &connection, ear);
    bool plain = lease != NULL;

    /* To wait once more after a message costs no look: what comes is looked at again. */
    if (plain && lease->streak > 0 && !rds_held_ready(lease->rds))
        return lease;
    plain = plain && is_plain_pubsub(n, pubsub, ear) && core_observed(st, true) == 0;
    if (plain && ear->trusted > 0 && !is_logged(n)) {
        ear->trusted--;
    } else if (plain) {
        plain = is_plain_connection(n, connection);
        ear->trusted = plain ? TRUSTED : 0;
    }
    PyErr_Clear(); /* whatever it was, redis-py will meet it as well */
    return plain ? lease : NULL;
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

/* One more item of message, *value, from the reply; borrowed from message.  0, or -1 with
 * an exception set. */
static int add_item(struct core_lease *lease, PyObject *message, PyObject *name,
                    const struct rds_arena *arena, uint32_t *at, PyObject **value)
{
    enum rds_type type;
    int rc;

    *value = core_reply_next(lease->channel, arena, at, false, &type);
    rc = *value == NULL ? -1 : PyDict_SetItem(message, name, *value);
    Py_XDECREF(*value);
    return rc;
}

/* A published message as the dict that redis-py makes of it; *key, borrowed from it, is
 * what was subscribed to. */
static PyObject *message_of(struct core_lease *lease, PyObject *kind,
                            const struct rds_arena *arena, uint32_t at, PyObject **key)
{
    const struct core_native_state *n = &lease->st->native;
    PyObject *message = PyDict_New(), *pattern = Py_None, *channel = NULL, *data;

    if (message == NULL || PyDict_SetItem(message, n->str_type, kind) < 0 ||
        (kind == n->str_pmessage
             ? add_item(lease, message, n->str_pattern, arena, &at, &pattern)
             : PyDict_SetItem(message, n->str_pattern, Py_None)) < 0 ||
        add_item(lease, message, n->str_channel, arena, &at, &channel) < 0 ||
        add_item(lease, message, n->str_data, arena, &at, &data) < 0)
        Py_CLEAR(message);
    *key = kind == n->str_pmessage ? pattern : channel;
    return message;
}

/* Message (taken) as _next_message() gives it: with its handler, if there is one. */
static PyObject *with_handler(const struct core_native_state *n, PyObject *pubsub, PyObject *kind,
                              PyObject *message, PyObject *key)
{
    PyObject *where = kind == n->str_message    ? n->str_channels
                      : kind == n->str_pmessage ? n->str_patterns
                                                : n->str_shard_channels;
    PyObject *handlers = Py_XNewRef(core_own_value(pubsub, where)), *handler = NULL, *result = NULL;
    int truth = 0;

    if (handlers == NULL)
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

/* A reply as _next_message() gives it. */
static PyObject *found(struct core_lease *lease, PyObject *pubsub, const struct rds_arena *arena)
{
    const struct core_native_state *n = &lease->st->native;
    uint32_t at = 0;
    PyObject *kind = kind_of(n, arena, &at), *value, *reply, *key;

    if (kind != NULL) {
        value = message_of(lease, kind, arena, at, &key);
        return value == NULL ? NULL : with_handler(n, pubsub, kind, value, key);
    }
    reply = core_lease_reply(lease, arena, false);
    value = reply == NULL ? NULL : PyTuple_Pack(1, reply);
    Py_XDECREF(reply);
    return value;
}

PyObject *core_message_next(struct core_state *st, PyObject *pubsub, PyObject *timeout,
                            struct core_ear *ear)
{
    struct rds_received *received = NULL;
    struct core_lease *lease = plain_lease(st, pubsub, ear);
    PyObject *value = NULL;
    const char *why;
    int err;

    if (lease == NULL)
        Py_RETURN_NONE;
    Py_INCREF(lease);
    err = rds_held_lost(lease->rds, &why); /* before the look: what came first is first */
    /* After some in a row it waits, for what is there: that takes a turn of the loop. */
    if (lease->streak < STREAK)
        received = rds_held_take(lease->rds);
    if (received != NULL) {
        lease->streak++;
        value = found(lease, pubsub, &received->arena);
        rds_received_free(received);
    } else if (err != RT_OK && lease->streak < STREAK) {
        value = Py_NewRef(Py_None); /* redis-py connects and subscribes again */
    } else if (timeout != Py_None && PyFloat_AsDouble(timeout) <= 0 && !PyErr_Occurred()) {
        value = Py_NewRef(Py_None); /* it looks once, and gives the loop a turn */
    } else if (!PyErr_Occurred()) {
        lease->streak = 0;
        value = core_lease_wait((PyObject *)lease, timeout);
    }
    Py_DECREF(lease);
    return value;
}

static PyObject *next_message(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct core_ear ear = { 0 };
    PyObject *value;

    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "_next_message() takes a PubSub and a timeout");
        return NULL;
    }
    value = core_message_next(core_state_of(module), args[0], args[1], &ear);
    Py_XDECREF(ear.lease);
    return value;
}

PyMethodDef core_messages_functions[] = {
    { "_setup_pubsub", setup_pubsub, METH_VARARGS,
      "_setup_pubsub($module, hooks, read_response, log, known, /)\n--\n\n"
      "Tell which methods may be left out as long as nobody has replaced them." },
    { "_next_message", (PyCFunction)(void (*)(void))next_message, METH_FASTCALL,
      "_next_message($module, pubsub, timeout, /)\n--\n\n"
      "A published message, a dict; (handler, message), where it has one; (reply,), which is\n"
      "something else; None: ask redis-py; or a Future: there is none, and its result says\n"
      "whether there was one before so many seconds were over." },
    { NULL, NULL, 0, NULL },
};
