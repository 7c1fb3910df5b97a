#include "channel_tls.h"

/* What dict has under key, borrowed; NULL for None or nothing. */
static PyObject *option(PyObject *dict, const char *key)
{
    PyObject *value = PyDict_GetItemString(dict, key);

    return value == Py_None ? NULL : value;
}

static int get_data(PyObject *dict, const char *key, const void **out, size_t *len)
{
    PyObject *value = option(dict, key);

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

static int get_text(PyObject *dict, const char *key, const char **out)
{
    const void *data;
    size_t len;

    if (get_data(dict, key, &data, &len) < 0)
        return -1;
    *out = data;
    if (data == NULL || strlen(*out) == len)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s contains a NUL byte", key);
    return -1;
}

static int get_bits(PyObject *dict, const char *key, uint64_t *out)
{
    PyObject *value = option(dict, key);

    if (value == NULL)
        return 0;
    *out = PyLong_AsUnsignedLongLong(value);
    return PyErr_Occurred() ? -1 : 0;
}

static int get_int(PyObject *dict, const char *key, int *out)
{
    PyObject *value = option(dict, key);
    long number;

    if (value == NULL)
        return 0;
    number = PyLong_AsLong(value);
    if (number == -1 && PyErr_Occurred())
        return -1;
    if (number < INT32_MIN || number > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "%s is out of range: %R", key, value);
        return -1;
    }
    *out = (int)number;
    return 0;
}

static int get_flag(PyObject *dict, const char *key, bool *out)
{
    PyObject *value = option(dict, key);
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);

    *out = truth > 0;
    return truth < 0 ? -1 : 0;
}

int core_read_tls(PyObject *dict, struct rds_tls_options *out)
{
    struct rds_tls_options *o = out;

    *o = (struct rds_tls_options){ .security_level = -1 };
    if (!PyDict_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "tls must be a dict, not %.100s", Py_TYPE(dict)->tp_name);
        return -1;
    }
    if (get_text(dict, "host", &o->host) < 0 || get_text(dict, "ciphers", &o->ciphers) < 0 ||
        get_text(dict, "cert_file", &o->cert_file) < 0 ||
        get_text(dict, "key_file", &o->key_file) < 0 ||
        get_data(dict, "key_password", &o->key_password, &o->key_password_len) < 0 ||
        get_text(dict, "ca_file", &o->ca_file) < 0 || get_text(dict, "ca_path", &o->ca_path) < 0 ||
        get_text(dict, "system_ca_file", &o->system_ca_file) < 0 ||
        get_text(dict, "system_ca_path", &o->system_ca_path) < 0 ||
        get_data(dict, "ca_data", &o->ca_data, &o->ca_data_len) < 0 ||
        get_flag(dict, "ca_data_pem", &o->ca_data_pem) < 0 ||
        get_flag(dict, "check_host", &o->check_host) < 0 ||
        get_flag(dict, "verify", &o->verify) < 0 ||
        get_bits(dict, "verify_flags", &o->verify_flags) < 0 ||
        get_bits(dict, "options", &o->options) < 0 ||
        get_int(dict, "min_version", &o->min_version) < 0 ||
        get_int(dict, "max_version", &o->max_version) < 0 ||
        get_int(dict, "security_level", &o->security_level) < 0)
        return -1;
    if (o->host != NULL && *o->host != '\0' && o->ca_data_len <= INT32_MAX)
        return 0;
    PyErr_SetString(PyExc_ValueError, "tls needs a host, and ca_data below 2 GB");
    return -1;
}
