#include "callbacks.h"

/* What each makes of a reply: the result; NULL without an exception: the shape is
 * another, redis-py has to. */
typedef PyObject *(*native_callback)(const struct core_native_state *n, PyObject *value,
                                     PyObject *options);

/* ---- entries -------------------------------------------------------------------------------- */

/* [name, value, ...] as a dict; what has no value is dropped, as redis-py drops it. */
static PyObject *dict_of(PyObject *fields)
{
    PyObject *dict = NULL;
    Py_ssize_t i;

    if (fields != Py_None && !PyList_CheckExact(fields))
        return NULL;
    dict = PyDict_New();
    if (dict == NULL || fields == Py_None)
        return dict;
    for (i = 0; i + 1 < PyList_GET_SIZE(fields); i += 2) {
        if (PyDict_SetItem(dict, PyList_GET_ITEM(fields, i), PyList_GET_ITEM(fields, i + 1)) < 0) {
            Py_DECREF(dict);
            return NULL;
        }
    }
    return dict;
}

/* (id, fields), with `more` (id, fields, what follows ...). */
static PyObject *entry_of(PyObject *entry, bool more)
{
    PyObject *fields, *result;
    Py_ssize_t size, i;

    if (entry == Py_None)
        return PyTuple_Pack(2, Py_None, Py_None);
    if (!PyList_CheckExact(entry) || PyList_GET_SIZE(entry) < 2)
        return NULL;
    size = more ? PyList_GET_SIZE(entry) : 2;
    fields = dict_of(PyList_GET_ITEM(entry, 1));
    if (fields == NULL)
        return NULL;
    result = PyTuple_New(size);
    if (result == NULL) {
        Py_DECREF(fields);
        return NULL;
    }
    PyTuple_SET_ITEM(result, 0, Py_NewRef(PyList_GET_ITEM(entry, 0)));
    PyTuple_SET_ITEM(result, 1, fields);
    for (i = 2; i < size; i++)
        PyTuple_SET_ITEM(result, i, Py_NewRef(PyList_GET_ITEM(entry, i)));
    return result;
}

/* The entries of one stream. */
static PyObject *stream_list(const struct core_native_state *n, PyObject *value, PyObject *options)
{
    PyObject *list, *entry;
    Py_ssize_t i;
    int more = 0;

    if (value == Py_None)
        return Py_NewRef(Py_None);
    if (!PyList_CheckExact(value))
        return NULL;
    if (options != NULL)
        more = PyDict_Contains(options, n->str_claim_min_idle_time);
    list = more < 0 ? NULL : PyList_New(PyList_GET_SIZE(value));
    if (list == NULL)
        return NULL;
    for (i = 0; i < PyList_GET_SIZE(value); i++) {
        entry = entry_of(PyList_GET_ITEM(value, i), more != 0);
        if (entry == NULL) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, i, entry);
    }
    return list;
}

/* ---- streams -------------------------------------------------------------------------------- */

/* [first (borrowed), second (taken; NULL: it could not be made)]. */
static PyObject *pair_of(PyObject *first, PyObject *second)
{
    PyObject *list = second == NULL ? NULL : PyList_New(2);

    if (list == NULL) {
        Py_XDECREF(second);
        return NULL;
    }
    PyList_SET_ITEM(list, 0, Py_NewRef(first));
    PyList_SET_ITEM(list, 1, second);
    return list;
}

/* The next stream of a reply, which is a dict or a list of pairs: 1, or 0 at its end, or -1
 * where it is neither.  Borrowed. */
static int next_stream(PyObject *value, Py_ssize_t *at, PyObject **name, PyObject **entries)
{
    PyObject *pair;

    if (PyDict_CheckExact(value))
        return PyDict_Next(value, at, name, entries);
    if (!PyList_CheckExact(value))
        return -1;
    if (*at >= PyList_GET_SIZE(value))
        return 0;
    pair = PyList_GET_ITEM(value, (*at)++);
    if (!PyList_CheckExact(pair) || PyList_GET_SIZE(pair) != 2)
        return -1;
    *name = PyList_GET_ITEM(pair, 0);
    *entries = PyList_GET_ITEM(pair, 1);
    return 1;
}

/* [[stream, entries], ...] */
static PyObject *as_list(const struct core_native_state *n, PyObject *value, PyObject *options)
{
    PyObject *result = PyList_New(0), *name, *entries, *item;
    Py_ssize_t at = 0;
    int rc;

    if (result == NULL || value == Py_None)
        return result;
    while ((rc = next_stream(value, &at, &name, &entries)) > 0) {
        item = pair_of(name, stream_list(n, entries, options));
        rc = item == NULL ? -1 : PyList_Append(result, item);
        Py_XDECREF(item);
        if (rc < 0)
            break;
    }
    if (rc < 0)
        Py_CLEAR(result);
    return result;
}

/* {stream: entries}, or where `nested` {stream: [entries]}. */
static PyObject *as_dict(const struct core_native_state *n, PyObject *value, PyObject *options,
                         bool nested)
{
    PyObject *result = PyDict_New(), *name, *entries, *item, *list;
    Py_ssize_t at = 0;
    int rc;

    if (result == NULL || value == Py_None)
        return result;
    while ((rc = next_stream(value, &at, &name, &entries)) > 0) {
        item = stream_list(n, entries, options);
        if (nested && item != NULL) {
            list = PyList_New(1);
            if (list != NULL)
                PyList_SET_ITEM(list, 0, item);
            else
                Py_DECREF(item);
            item = list;
        }
        rc = item == NULL ? -1 : PyDict_SetItem(result, name, item);
        Py_XDECREF(item);
        if (rc < 0)
            break;
    }
    if (rc < 0)
        Py_CLEAR(result);
    return result;
}

static PyObject *xread(const struct core_native_state *n, PyObject *value, PyObject *options)
{
    return PyDict_CheckExact(value) ? NULL : as_list(n, value, options);
}

static PyObject *xread_resp3(const struct core_native_state *n, PyObject *value, PyObject *options)
{
    return PyList_CheckExact(value) ? NULL : as_dict(n, value, options, true);
}

static PyObject *xread_unified(const struct core_native_state *n, PyObject *value,
                               PyObject *options)
{
    return as_dict(n, value, options, false);
}

static PyObject *xread_resp3_to_resp2(const struct core_native_state *n, PyObject *value,
                                      PyObject *options)
{
    /* An empty list is an empty result; any other is a dict's place. */
    if (PyList_CheckExact(value) && PyList_GET_SIZE(value) > 0)
        return NULL;
    return as_list(n, value, options);
}

/* ---- which ---------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    native_callback call;
} natives[CORE_CALLBACKS] = {
    { "parse_stream_list", stream_list },
    { "parse_xread", xread },
    { "parse_xread_resp3", xread_resp3 },
    { "parse_xread_unified", xread_unified },
    { "parse_xread_resp3_to_resp2_legacy", xread_resp3_to_resp2 },
};

PyObject *core_apply_callback(struct core_state *st, PyObject *callback, PyObject *options,
                              PyObject *value)
{
    const struct core_native_state *n = &st->native;
    PyObject *args, *result;
    unsigned i;

    for (i = 0; i < CORE_CALLBACKS; i++) {
        if (callback != n->callbacks[i])
            continue;
        result = natives[i].call(n, value, options);
        if (result != NULL)
            return result;
        PyErr_Clear(); /* whatever it was, redis-py's own meets it as well */
        break;
    }
    if (options == NULL)
        return PyObject_CallOneArg(callback, value);
    args = PyTuple_Pack(1, value);
    if (args == NULL)
        return NULL;
    result = PyObject_Call(callback, args, options);
    Py_DECREF(args);
    return result;
}

/* _setup_callbacks(module): redis-py's module that has the functions. One that it does
 * not have is no callback of anybody's. */
static PyObject *setup_callbacks(PyObject *module, PyObject *helpers)
{
    struct core_native_state *n = &core_state_of(module)->native;
    unsigned i;

    for (i = 0; i < CORE_CALLBACKS; i++) {
        PyObject *function = PyObject_GetAttrString(helpers, natives[i].name);

        if (function == NULL && !PyErr_ExceptionMatches(PyExc_AttributeError))
            return NULL;
        PyErr_Clear();
        Py_XSETREF(n->callbacks[i], function);
    }
    Py_RETURN_NONE;
}

PyMethodDef core_callbacks_functions[] = {
    { "_setup_callbacks", setup_callbacks, METH_O,
      "_setup_callbacks($module, helpers, /)\n--\n\n"
      "Which of redis-py's response callbacks have one in C: those of this module." },
    { NULL, NULL, 0, NULL },
};
