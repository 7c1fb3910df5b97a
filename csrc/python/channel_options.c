#include "channel_options.h"

#include "options.h"

int core_read_options(PyObject *dict, struct rds_options *out)
{
    struct rds_options *o = out;
    int most = 100;

    *o = (struct rds_options){ .port = 6379,
                               .protocol = 3,
                               .connect_timeout = RT_NEVER,
                               .max_reply = UINT64_C(1) << 30,
                               .max_leases = 100,
                               .backoff_cap = RT_SEC };
    if (core_option_text(dict, "host", &o->host) < 0 ||
        core_option_text(dict, "path", &o->path) < 0 ||
        core_option_text(dict, "username", &o->username) < 0 ||
        core_option_text(dict, "password", &o->password) < 0 ||
        core_option_text(dict, "client_name", &o->client_name) < 0 ||
        core_option_text(dict, "lib_name", &o->lib_name) < 0 ||
        core_option_text(dict, "lib_version", &o->lib_version) < 0 ||
        core_option_bits(dict, "max_reply_bytes", &o->max_reply) < 0 ||
        core_option_int(dict, "port", 1, 65535, &o->port) < 0 ||
        core_option_int(dict, "db", 0, INT32_MAX, &o->db) < 0 ||
        core_option_int(dict, "protocol", 2, 3, &o->protocol) < 0 ||
        core_option_int(dict, "keep_idle", 0, INT32_MAX, &o->keep_idle) < 0 ||
        core_option_int(dict, "keep_interval", 0, INT32_MAX, &o->keep_interval) < 0 ||
        core_option_int(dict, "keep_count", 0, INT32_MAX, &o->keep_count) < 0 ||
        core_option_int(dict, "retries", -1, INT32_MAX, &o->connect_retries) < 0 ||
        core_option_flag(dict, "keepalive", &o->keepalive) < 0 ||
        core_option_flag(dict, "backoff_jitter", &o->backoff_jitter) < 0 ||
        core_option_seconds(dict, "connect_timeout", &o->connect_timeout) < 0 ||
        core_option_seconds(dict, "health_interval", &o->health_interval) < 0 ||
        core_option_seconds(dict, "backoff_base", &o->backoff_base) < 0 ||
        core_option_seconds(dict, "backoff_cap", &o->backoff_cap) < 0 ||
        core_option_int(dict, "max_connections", 1, INT32_MAX, &most) < 0 ||
        core_option_seconds(dict, "connection_wait", &o->lease_wait) < 0)
        return -1;
    o->max_leases = (uint32_t)most;
    o->ask_credentials = core_option(dict, "provider") != NULL;
    return 0;
}

int core_read_tls(PyObject *dict, struct rds_tls_options *out)
{
    struct rds_tls_options *o = out;

    *o = (struct rds_tls_options){ .security_level = -1 };
    if (!PyDict_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "tls must be a dict, not %.100s", Py_TYPE(dict)->tp_name);
        return -1;
    }
    if (core_option_path(dict, "host", &o->host) < 0 ||
        core_option_path(dict, "ciphers", &o->ciphers) < 0 ||
        core_option_path(dict, "cert_file", &o->cert_file) < 0 ||
        core_option_path(dict, "key_file", &o->key_file) < 0 ||
        core_option_data(dict, "key_password", &o->key_password, &o->key_password_len) < 0 ||
        core_option_path(dict, "ca_file", &o->ca_file) < 0 ||
        core_option_path(dict, "ca_path", &o->ca_path) < 0 ||
        core_option_path(dict, "system_ca_file", &o->system_ca_file) < 0 ||
        core_option_path(dict, "system_ca_path", &o->system_ca_path) < 0 ||
        core_option_data(dict, "ca_data", &o->ca_data, &o->ca_data_len) < 0 ||
        core_option_flag(dict, "ca_data_pem", &o->ca_data_pem) < 0 ||
        core_option_flag(dict, "check_host", &o->check_host) < 0 ||
        core_option_flag(dict, "verify", &o->verify) < 0 ||
        core_option_bits(dict, "verify_flags", &o->verify_flags) < 0 ||
        core_option_bits(dict, "options", &o->options) < 0 ||
        core_option_int(dict, "min_version", INT32_MIN, INT32_MAX, &o->min_version) < 0 ||
        core_option_int(dict, "max_version", INT32_MIN, INT32_MAX, &o->max_version) < 0 ||
        core_option_int(dict, "security_level", INT32_MIN, INT32_MAX, &o->security_level) < 0)
        return -1;
    if (o->host != NULL && *o->host != '\0' && o->ca_data_len <= INT32_MAX)
        return 0;
    PyErr_SetString(PyExc_ValueError, "tls needs a host, and ca_data below 2 GB");
    return -1;
}
