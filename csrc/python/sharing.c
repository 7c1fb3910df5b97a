#include "sharing.h"

#include "../redis/rds_command.h"

static const char *const sharings[] = {
    [RDS_SHARED] = "shared", [RDS_BLOCKING] = "blocking", [RDS_STATEFUL] = "stateful",
    [RDS_DEPENDS] = "depends", [RDS_UNKNOWN] = "unknown",
};

/* A name as it is kept: in upper case. */
static PyObject *upper(const char *name, size_t len)
{
    PyObject *key = PyBytes_FromStringAndSize(name, (Py_ssize_t)len);
    char *at;

    if (key != NULL) {
        for (at = PyBytes_AS_STRING(key); *at != '\0'; at++)
            *at = rds_upper(*at);
    }
    return key;
}

int core_channel_learned(struct core_channel *channel, const char *name, size_t len)
{
    PyObject *key, *value;

    if (PyDict_GET_SIZE(channel->learned) == 0)
        return RDS_UNKNOWN;
    key = upper(name, len);
    if (key == NULL)
        return -1;
    value = PyDict_GetItemWithError(channel->learned, key);
    Py_DECREF(key);
    if (value != NULL)
        return (int)PyLong_AsLong(value);
    return PyErr_Occurred() ? -1 : RDS_UNKNOWN;
}

PyObject *core_channel_sharing(PyObject *op, PyObject *name)
{
    const char *text;
    Py_ssize_t len;
    int sharing;

    text = PyUnicode_AsUTF8AndSize(name, &len);
    if (text == NULL)
        return NULL;
    sharing = rds_command_sharing(text, (size_t)len);
    if (sharing == RDS_UNKNOWN)
        sharing = core_channel_learned((struct core_channel *)op, text, (size_t)len);
    return sharing < 0 ? NULL : PyUnicode_FromString(sharings[sharing]);
}

PyObject *core_channel_learn(PyObject *op, PyObject *args)
{
    struct core_channel *channel = (struct core_channel *)op;
    PyObject *key = NULL, *value = NULL;
    const char *name, *said;
    Py_ssize_t len;
    long sharing;
    int rc = -1;

    if (!PyArg_ParseTuple(args, "s#s:learn", &name, &len, &said))
        return NULL;
    for (sharing = RDS_SHARED; sharing <= RDS_UNKNOWN; sharing++) {
        if (sharing != RDS_DEPENDS && strcmp(said, sharings[sharing]) == 0)
            break;
    }
    if (sharing > RDS_UNKNOWN) {
        PyErr_Format(PyExc_ValueError, "'shared', 'blocking', 'stateful' or 'unknown', not '%s'",
                     said);
        return NULL;
    }
    key = upper(name, (size_t)len);
    value = PyLong_FromLong(sharing);
    if (key != NULL && value != NULL)
        rc = PyDict_SetItem(channel->learned, key, value);
    Py_XDECREF(key);
    Py_XDECREF(value);
    if (rc < 0)
        return NULL;
    Py_RETURN_NONE;
}
