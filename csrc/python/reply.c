#include "reply.h"

/* An aggregate under construction. */
struct frame {
    PyObject *object; /* list or dict, owned */
    PyObject *key;    /* owned: a dict's key whose value is next */
    uint32_t left;    /* nodes to come */
    uint32_t index;   /* of the list's next element */
    bool is_map;
};

static PyObject *text_of(struct core_channel *channel, const char *str, uint32_t len, bool raw)
{
    if (raw || !channel->decode)
        return PyBytes_FromStringAndSize(str, (Py_ssize_t)len);
    if (channel->plain_utf8)
        return PyUnicode_DecodeUTF8(str, (Py_ssize_t)len, NULL);
    return PyUnicode_Decode(str, (Py_ssize_t)len, channel->encoding_utf8, channel->errors_utf8);
}

static PyObject *error_of(struct core_state *st, const char *str, uint32_t len)
{
    PyObject *text = PyUnicode_DecodeUTF8(str, (Py_ssize_t)len, "replace"), *error = NULL;

    if (text != NULL)
        error = PyObject_CallOneArg(st->native.parse_error, text);
    Py_XDECREF(text);
    if (error != NULL && !PyExceptionInstance_Check(error)) {
        Py_DECREF(error);
        PyErr_SetString(PyExc_TypeError, "parse_error must return an exception");
        return NULL;
    }
    return error;
}

static PyObject *failure_of(struct core_state *st, const char *str, uint32_t len)
{
    PyObject *text = PyUnicode_DecodeUTF8(str, (Py_ssize_t)len, "replace"), *error = NULL;

    if (text != NULL)
        error = PyObject_CallOneArg(st->native.redis_error, text);
    Py_XDECREF(text);
    return error;
}

static PyObject *big_of(const struct rds_node *node)
{
    PyObject *text = PyUnicode_DecodeASCII(node->str, (Py_ssize_t)node->len, NULL), *value = NULL;

    if (text != NULL)
        value = PyLong_FromUnicodeObject(text, 10);
    Py_XDECREF(text);
    return value;
}

/* A node that has no children, or an empty aggregate to be filled. */
static PyObject *object_of(struct core_channel *channel, const struct rds_node *node, bool raw)
{
    switch (node->type) {
    case RDS_NIL: return Py_NewRef(Py_None);
    case RDS_BOOL: return PyBool_FromLong((long)node->integer);
    case RDS_INT: return PyLong_FromLongLong(node->integer);
    case RDS_DOUBLE: return PyFloat_FromDouble(node->real);
    case RDS_STR:
    case RDS_STATUS:
    case RDS_VERB: return text_of(channel, node->str, node->len, raw);
    case RDS_BIG: return big_of(node);
    case RDS_ERROR: return error_of(channel->st, node->str, node->len);
    case RDS_FAILURE: return failure_of(channel->st, node->str, node->len);
    case RDS_ARRAY:
    case RDS_SET:
    case RDS_PUSH: return PyList_New((Py_ssize_t)node->len);
    case RDS_MAP: return PyDict_New();
    }
    PyErr_SetString(PyExc_SystemError, "a reply of an unknown type");
    return NULL;
}

static bool has_children(const struct rds_node *node)
{
    return node->type >= RDS_ARRAY && node->len > 0;
}

/* Put object (taken) into the aggregate.  0, or -1 with an exception set. */
static int add(struct frame *frame, PyObject *object)
{
    int rc = 0;

    frame->left--;
    if (!frame->is_map) {
        PyList_SET_ITEM(frame->object, (Py_ssize_t)frame->index++, object);
    } else if (frame->key == NULL) {
        frame->key = object;
    } else {
        rc = PyDict_SetItem(frame->object, frame->key, object);
        Py_CLEAR(frame->key);
        Py_DECREF(object);
    }
    return rc;
}

/* Take the strings that come next into a list, but for its last element, which closes
 * it.  0, or -1 with an exception set. */
static int add_strings(struct core_channel *channel, const struct rds_arena *arena,
                       uint32_t *at, bool raw, struct frame *frame)
{
    const char *str;
    uint32_t len;

    while (frame->left > 1 && (str = rds_reply_string(arena, at, &len)) != NULL) {
        PyObject *object = text_of(channel, str, len, raw);

        if (object == NULL)
            return -1;
        PyList_SET_ITEM(frame->object, (Py_ssize_t)frame->index++, object);
        frame->left--;
    }
    return 0;
}

PyObject *core_reply_next(struct core_channel *channel, const struct rds_arena *arena,
                          uint32_t *at, bool raw, enum rds_type *type)
{
    struct frame stack[RDS_MAX_DEPTH + 1];
    PyObject *object = NULL;
    struct rds_node node;
    int depth = 0;

    while (rds_reply_next(arena, at, &node)) {
        object = object_of(channel, &node, raw);
        if (object == NULL)
            goto fail;
        if (depth == 0)
            *type = node.type;
        if (has_children(&node)) {
            RT_CHECK(depth <= RDS_MAX_DEPTH);
            stack[depth++] = (struct frame){ .object = object,
                                             .left = node.len,
                                             .is_map = node.type == RDS_MAP };
            object = NULL;
            if (node.type != RDS_MAP &&
                add_strings(channel, arena, at, raw, &stack[depth - 1]) < 0)
                goto fail;
            continue;
        }
        /* Close every aggregate that this completes. */
        while (depth > 0) {
            struct frame *top = &stack[depth - 1];

            if (add(top, object) < 0) {
                object = NULL;
                goto fail;
            }
            object = NULL;
            if (top->left > 0)
                break;
            object = top->object;
            depth--;
        }
        if (depth == 0)
            return object;
    }
    PyErr_SetString(PyExc_SystemError, "an incomplete reply");
fail:
    while (depth > 0) {
        depth--;
        Py_XDECREF(stack[depth].key);
        Py_DECREF(stack[depth].object);
    }
    return NULL;
}

PyObject *core_reply_object(struct core_channel *channel, const struct rds_arena *reply, bool raw,
                            bool *is_error)
{
    enum rds_type type = RDS_NIL;
    uint32_t at = 0;
    PyObject *object = core_reply_next(channel, reply, &at, raw, &type);

    *is_error = type == RDS_ERROR;
    return object;
}

void core_reply_skip(const struct rds_arena *arena, uint32_t *at)
{
    struct rds_node node;
    uint64_t left = 1;

    while (left > 0 && rds_reply_next(arena, at, &node))
        left += (uint64_t)(has_children(&node) ? node.len : 0) - 1;
}

PyObject *core_reply_failure(struct core_channel *channel, int err, const struct rds_arena *reply)
{
    struct core_native_state *native = &channel->st->native;
    PyObject *type = native->connection_error, *text = NULL, *error = NULL;
    struct rds_node node = { .str = NULL };
    uint32_t at = 0;

    if (!rds_reply_next(reply, &at, &node) || node.str == NULL) {
        node.str = rt_strerror(err);
        node.len = (uint32_t)strlen(node.str);
    }
    switch (err) {
    case RT_EAUTH:
    case RT_EBUSY:
    case RT_EREFUSED:
        /* The server's own words: redis-py knows which exception they mean. */
        return error_of(channel->st, node.str, node.len);
    case RT_ECREDENTIALS:
        if (channel->provider_error != NULL)
            return Py_NewRef(channel->provider_error);
        break;
    case RT_ETIMEOUT: type = native->timeout_error; break;
    case RT_EPROTOCOL: type = native->invalid_response; break;
    case RT_EFULL: type = native->max_connections_error; break;
    case RT_ETOOBIG: type = native->redis_error; break;
    case RT_ENOMEM: type = PyExc_MemoryError; break;
    default: break;
    }
    text = PyUnicode_DecodeUTF8(node.str, (Py_ssize_t)node.len, "replace");
    if (text != NULL)
        error = PyObject_CallOneArg(type, text);
    Py_XDECREF(text);
    return error;
}
