#include "options.h"

#include "../runtime/rt_base.h"

PyObject *core_option(PyObject *dict, const char *key)
{
    PyObject *value = PyDict_GetItemString(dict, key);

    return value == Py_None ? NULL : value;
}

int core_option_text(PyObject *dict, const char *key, const char **out)
{
    PyObject *value = core_option(dict, key);
    Py_ssize_t len = 0;

    *out = NULL;
    if (value == NULL)
        return 0;
    if (!PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be a str, not %.100s", key, Py_TYPE(value)->tp_name);
        return -1;
    }
    *out = PyUnicode_AsUTF8AndSize(value, &len);
    if (*out == NULL)
        return -1;
    if (strlen(*out) != (size_t)len) {
        PyErr_Format(PyExc_ValueError, "%s contains a NUL character", key);
        return -1;
    }
    return 0;
}

int core_option_int(PyObject *dict, const char *key, long low, long high, int *out)
{
    PyObject *value = core_option(dict, key);
    long number;

    if (value == NULL)
        return 0;
    number = PyLong_AsLong(value);
    if (number == -1 && PyErr_Occurred())
        return -1;
    if (number < low || number > high) {
        PyErr_Format(PyExc_ValueError, "%s must be between %ld and %ld, not %R", key, low, high,
                     value);
        return -1;
    }
    *out = (int)number;
    return 0;
}

int core_option_seconds(PyObject *dict, const char *key, uint64_t *out)
{
    PyObject *value = core_option(dict, key);
    double seconds;

    if (value == NULL)
        return 0;
    seconds = PyFloat_AsDouble(value);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    if (!(seconds >= 0)) {
        PyErr_Format(PyExc_ValueError, "%s must not be negative: %R", key, value);
        return -1;
    }
    *out = seconds < 1e9 ? (uint64_t)(seconds * 1e9) : RT_NEVER;
    return 0;
}

int core_option_flag(PyObject *dict, const char *key, bool *out)
{
    PyObject *value = core_option(dict, key);
    int truth = value == NULL ? *out : PyObject_IsTrue(value);

    *out = truth > 0;
    return truth < 0 ? -1 : 0;
}

int core_option_data(PyObject *dict, const char *key, const void **out, size_t *len)
{
    PyObject *value = core_option(dict, key);

    *out = NULL;
    *len = 0;
    if (value == NULL)
        return 0;
    if (!PyBytes_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be bytes, not %.100s", key, Py_TYPE(value)->tp_name);
        return -1;
    }
    *out = PyBytes_AS_STRING(value);
    *len = (size_t)PyBytes_GET_SIZE(value);
    return 0;
}

int core_option_path(PyObject *dict, const char *key, const char **out)
{
    const void *data;
    size_t len;

    if (core_option_data(dict, key, &data, &len) < 0)
        return -1;
    *out = data;
    if (data == NULL || strlen(*out) == len)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s contains a NUL byte", key);
    return -1;
}

int core_option_bits(PyObject *dict, const char *key, uint64_t *out)
{
    PyObject *value = core_option(dict, key);

    if (value == NULL)
        return 0;
    *out = PyLong_AsUnsignedLongLong(value);
    return PyErr_Occurred() ? -1 : 0;
}
