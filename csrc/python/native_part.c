/* The pool, the bridge, the channel and the client as a part of the module. */
#include "../redis/rds_conn.h"
#include "bridge.h"
#include "callbacks.h"
#include "channel_type.h"
#include "client_type.h"
#include "core.h"
#include "entry.h"
#include "lease_type.h"
#include "listen.h"
#include "messages.h"
#include "methods.h"
#include "pipeline_type.h"
#include "pool_type.h"

/* The objects of the state: name for name, so that visiting and clearing them
 * cannot forget one. */
#define TYPES(X)                                                                   \
    X(bridge_type) X(pool_type) X(channel_type) X(client_type) X(method_type)     \
    X(entry_type) X(pipeline_type) X(batch_type) X(lease_type) X(push_type)      \
    X(messages_type) X(next_message_type)
#define OBJECTS(X)                                                                 \
    X(get_running_loop) X(parse_error) X(connection_error) X(timeout_error)       \
    X(max_connections_error)                                                      \
    X(data_error) X(invalid_response) X(redis_error) X(response_error) X(chain)   \
    X(reads) X(recorder) X(providers) X(commands) X(execute_command)              \
    X(queue_command) X(speller) X(pubsub_hooks) X(read_response) X(push_log)      \
    X(push_log_known) X(debug_level)
#define STRINGS(X)                                                                 \
    X(str_add_reader, "add_reader")                                               \
    X(str_remove_reader, "remove_reader")                                         \
    X(str_is_closed, "is_closed")                                                 \
    X(str_call_soon_threadsafe, "call_soon_threadsafe")                           \
    X(str_keys, "keys")                                                           \
    X(str_never_decode, "NEVER_DECODE")                                           \
    X(str_empty_response, "EMPTY_RESPONSE")                                       \
    X(str_open_channel, "_open_channel")                                          \
    X(str_execute_leased, "_execute_leased")                                      \
    X(str_execute_deferred, "_execute_deferred")                                  \
    X(str_collector, "_async_metrics_collector")                                  \
    X(str_instance, "_observability_instance")                                    \
    X(str_provider, "_provider_manager")                                          \
    X(str_execute_command, "execute_command")                                     \
    X(str_running_mark, "__asyncio_running_event_loop__")                         \
    X(str_immediate_execute, "immediate_execute_command")                         \
    X(str_pipeline_execute, "pipeline_execute_command")                           \
    X(str_type, "type")                                                           \
    X(str_pattern, "pattern")                                                     \
    X(str_channel, "channel")                                                     \
    X(str_data, "data")                                                           \
    X(str_message, "message")                                                     \
    X(str_pmessage, "pmessage")                                                   \
    X(str_smessage, "smessage")                                                   \
    X(str_connection, "connection")                                               \
    X(str_lease, "_lease")                                                        \
    X(str_parser, "_parser")                                                      \
    X(str_own_parser, "_offloop_parser")                                          \
    X(str_read_response, "read_response")                                         \
    X(str_health, "health_check_interval")                                        \
    X(str_push_handler, "push_handler_func")                                      \
    X(str_pushed, "pubsub_push_handler_func")                                     \
    X(str_handles_push, "handle_pubsub_push_response")                            \
    X(str_channels, "channels")                                                   \
    X(str_patterns, "patterns")                                                   \
    X(str_shard_channels, "shard_channels")                                       \
    X(str_subscribed, "subscribed")                                               \
    X(str_receive, "_receive")                                                    \
    X(str_claim_min_idle_time, "claim_min_idle_time")

/* _setup_redis(parse_error=..., ...): what the C code takes from redis-py. */
static PyObject *setup_redis(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "parse_error", "redis_error", "connection_error", "timeout_error",
                             "data_error", "invalid_response", "response_error", "chain",
                             "max_connections_error", "reads", "recorder", "providers",
                             "speller", NULL };
    struct core_native_state *n = &core_state_of(module)->native;
    PyObject *o[13];

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$OOOOOOOOOOO!O!O:_setup_redis", names, &o[0],
                                     &o[1], &o[2], &o[3], &o[4], &o[5], &o[6], &o[7], &o[8],
                                     &o[9], &PyModule_Type, &o[10], &PyModule_Type, &o[11], &o[12]))
        return NULL;
    Py_XSETREF(n->parse_error, Py_NewRef(o[0]));
    Py_XSETREF(n->redis_error, Py_NewRef(o[1]));
    Py_XSETREF(n->connection_error, Py_NewRef(o[2]));
    Py_XSETREF(n->timeout_error, Py_NewRef(o[3]));
    Py_XSETREF(n->data_error, Py_NewRef(o[4]));
    Py_XSETREF(n->invalid_response, Py_NewRef(o[5]));
    Py_XSETREF(n->response_error, Py_NewRef(o[6]));
    Py_XSETREF(n->chain, Py_NewRef(o[7]));
    Py_XSETREF(n->max_connections_error, Py_NewRef(o[8]));
    if (!PyAnySet_Check(o[9])) {
        PyErr_SetString(PyExc_TypeError, "reads must be a set");
        return NULL;
    }
    Py_XSETREF(n->reads, Py_NewRef(o[9]));
    Py_XSETREF(n->recorder, Py_NewRef(o[10]));
    Py_XSETREF(n->providers, Py_NewRef(o[11]));
    Py_XSETREF(n->speller, Py_NewRef(o[12]));
    PyDict_Clear(n->commands); /* described without it */
    Py_RETURN_NONE;
}

static PyObject *build_info(PyObject *module, PyObject *unused)
{
    bool debug = false, asan = false, tsan = false;

    (void)module;
    (void)unused;
#if RT_DEBUG
    debug = true;
#endif
#if RT_ASAN
    asan = true;
#endif
#if RT_TSAN
    tsan = true;
#endif
    return Py_BuildValue("{s:O,s:O,s:O,s:s}", "debug", debug ? Py_True : Py_False, "asan",
                         asan ? Py_True : Py_False, "tsan", tsan ? Py_True : Py_False, "hiredis",
                         RDS_HIREDIS_VERSION);
}

#if RT_DEBUG
/* _debug_mutate(name): plant a bug that a test must catch. */
static PyObject *debug_mutate(PyObject *module, PyObject *name)
{
    (void)module;
    if (!PyUnicode_Check(name) ||
        PyUnicode_CompareWithASCIIString(name, "match-off-by-one-after-cancel") != 0) {
        PyErr_SetString(PyExc_ValueError, "no such mutant");
        return NULL;
    }
    atomic_store(&rds_mutant_match, true);
    Py_RETURN_NONE;
}
#endif

static PyMethodDef functions[] = {
#if RT_DEBUG
    { "_debug_mutate", debug_mutate, METH_O, "Plant a bug that a test must catch." },
#endif
    { "_setup_redis", (PyCFunction)(void (*)(void))setup_redis, METH_VARARGS | METH_KEYWORDS,
      "Tell the native client which exceptions to raise." },
    { "build_info", build_info, METH_NOARGS,
      "build_info()\n--\n\nHow the extension was built: debug, sanitizers, hiredis version." },
    { NULL, NULL, 0, NULL },
};

static int add_subtype(PyObject *module, PyType_Spec *spec, const char *name,
                       PyTypeObject *base, PyTypeObject **out)
{
    *out = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, (PyObject *)base);
    if (*out == NULL)
        return -1;
    return PyModule_AddObjectRef(module, name, (PyObject *)*out);
}

static int add_type(PyObject *module, PyType_Spec *spec, const char *name, PyTypeObject **out)
{
    return add_subtype(module, spec, name, NULL, out);
}

static int native_register(PyObject *module, struct core_state *st)
{
    struct core_native_state *n = &st->native;

#define INTERN(field, text)                                                        \
    n->field = PyUnicode_InternFromString(text);                                  \
    if (n->field == NULL)                                                         \
        return -1;
    STRINGS(INTERN)
#undef INTERN
    n->get_running_loop = core_import_attr("asyncio", "_get_running_loop");
    n->commands = PyDict_New();
    if (n->get_running_loop == NULL || n->commands == NULL)
        return -1;
    if (add_type(module, &core_bridge_spec, "_Bridge", &n->bridge_type) < 0 ||
        add_type(module, &core_pool_spec, "Pool", &n->pool_type) < 0 ||
        add_type(module, &core_channel_spec, "Channel", &n->channel_type) < 0 ||
        add_type(module, &core_client_spec, "Client", &n->client_type) < 0 ||
        add_type(module, &core_method_spec, "Method", &n->method_type) < 0 ||
        add_type(module, &core_entry_spec, "Entry", &n->entry_type) < 0 ||
        add_type(module, &core_batch_spec, "Batch", &n->batch_type) < 0 ||
        add_type(module, &core_lease_spec, "Lease", &n->lease_type) < 0 ||
        add_type(module, &core_messages_spec, "Messages", &n->messages_type) < 0 ||
        add_type(module, &core_next_message_spec, "_NextMessage", &n->next_message_type) < 0 ||
        add_subtype(module, &core_push_spec, "Push", &PyList_Type, &n->push_type) < 0 ||
        add_subtype(module, &core_pipeline_spec, "Pipeline", n->client_type,
                    &n->pipeline_type) < 0)
        return -1;
    n->execute_command = PyObject_GetAttr((PyObject *)n->client_type, n->str_execute_command);
    n->queue_command = PyObject_GetAttr((PyObject *)n->pipeline_type, n->str_execute_command);
    if (n->execute_command == NULL || n->queue_command == NULL)
        return -1;
    if (PyModule_AddFunctions(module, core_messages_functions) < 0 ||
        PyModule_AddFunctions(module, core_callbacks_functions) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}

static int native_visit(struct core_state *st, visitproc visit, void *arg)
{
    struct core_native_state *n = &st->native;

#define VISIT(field) Py_VISIT(n->field);
    TYPES(VISIT)
    OBJECTS(VISIT)
#undef VISIT
    for (unsigned i = 0; i < CORE_CALLBACKS; i++)
        Py_VISIT(n->callbacks[i]);
    return 0;
}

static void native_clear(struct core_state *st)
{
    struct core_native_state *n = &st->native;

#define CLEAR(field) Py_CLEAR(n->field);
    OBJECTS(CLEAR)
    TYPES(CLEAR)
#undef CLEAR
    for (unsigned i = 0; i < CORE_CALLBACKS; i++)
        Py_CLEAR(n->callbacks[i]);
#define CLEAR(field, text) Py_CLEAR(n->field);
    STRINGS(CLEAR)
#undef CLEAR
}

const struct core_part core_native_part = {
    .register_part = native_register,
    .visit = native_visit,
    .clear = native_clear,
};
