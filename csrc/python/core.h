/* offloop._core: the module's state, shared by every file of this folder.
 *
 * For: one place that owns all Python objects the extension keeps between
 * calls.  There is no static PyObject anywhere, so a second interpreter, or a
 * second import after the first module died, has a state of its own.
 *
 * Used: each part (future, pool, channel, client ...) has one row in the
 * table of module.c: register fills its fields of the state, visit and clear
 * serve the collector.  An object of a core type keeps a plain
 * `struct core_state *`; PyType_GetModuleByDef is missing in 3.10.
 *
 * Correct: an object's pointer cannot dangle, because the object counts as a
 * holder of the state (core_state_hold, core_state_drop).  Its type is not
 * enough: when the collector takes type, module and instances in one go, it
 * makes the type drop the module before the last instance is deallocated.
 * The collector may also clear the fields before that, therefore code that a
 * dying object runs (tp_clear, tp_dealloc) tests what it uses. */
#ifndef OFFLOOP_CORE_H
#define OFFLOOP_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

/* How many dead futures wait for reuse; 1024 of them are about 180 KB. */
#define CORE_FUTURE_FREE_MAX 1024

struct core_call;
struct core_future;
struct core_host;

/* Names that methods are called by, interned once. */
struct core_names {
    PyObject *call_soon;
    PyObject *call_exception_handler;
    PyObject *context;
    PyObject *exception;
    PyObject *future;
    PyObject *get_debug;
    PyObject *message;
    PyObject *msg;
    PyObject *source_traceback;
};

/* What the awaitable needs from asyncio, and its free list. */
struct core_future_state {
    PyTypeObject *type;
    PyObject *cancelled_error;
    PyObject *invalid_state_error;
    PyObject *extract_stack;        /* traceback.extract_stack */
    PyObject *repr;                 /* base_futures._future_repr, or NULL */
    PyObject *repr_info;            /* 3.10: _future_repr_info, or NULL */
    PyObject *kw_context;           /* ("context",) for vectorcall */
    PyObject *asyncio_future;       /* asyncio.Future: what it refuses, we do */

    PyObject *succeeded;            /* an exact asyncio.Future with a result, or NULL */
    PyTypeObject *task_type;        /* _asyncio.Task, or NULL: never in place */
    PyMethodDef *task_wakeup_borrowed;  /* static data of _asyncio */
    PyObject *current_tasks;        /* dict loop -> task, up to 3.13 */
    PyObject *current_task;         /* asyncio.current_task, for later ones */

    struct core_future *free[CORE_FUTURE_FREE_MAX];
    int n_free;
    int max_free;                   /* 0 once the state is being cleared */
};

/* What the pool and the Redis client need. */
#define CORE_CALLBACKS 5 /* callbacks.c */

struct core_native_state {
    PyTypeObject *bridge_type;
    PyTypeObject *pool_type;
    PyTypeObject *channel_type;
    PyTypeObject *client_type;
    PyTypeObject *method_type;
    PyTypeObject *entry_type;
    PyTypeObject *pipeline_type;
    PyTypeObject *batch_type;
    PyTypeObject *lease_type;
    PyTypeObject *push_type;
    PyTypeObject *messages_type;
    PyTypeObject *next_message_type;
    PyTypeObject *caller_type;
    PyTypeObject *lane_type;
    PyObject *get_running_loop;     /* asyncio._get_running_loop */

    /* Calls of Python functions. */
    struct core_host *host;         /* never NULL once the module is made */
    struct core_call *calls;        /* free ones */
    unsigned call_count;

    /* Given by offloop.pool. */
    PyObject *executor_future;      /* concurrent.futures.Future */
    PyObject *adopt, *forget;       /* a worker's thread begins and ends with them */
    PyObject *deferred;             /* (call, args, kwargs): a coroutine that calls */
    PyObject *call_timeout_error;
    PyObject *pool_closed_error;
    PyObject *pool_full_error;
    PyObject *broken_pool_error;

    /* Given by offloop.redis, which imports the redis package. */
    PyObject *parse_error;          /* error text -> exception */
    PyObject *connection_error;
    PyObject *max_connections_error;
    PyObject *timeout_error;
    PyObject *data_error;
    PyObject *invalid_response;
    PyObject *redis_error;
    PyObject *response_error;
    PyObject *chain;                /* (future, awaitable): settle by it */
    PyObject *reads;                /* names of commands that change nothing */
    PyObject *recorder, *providers; /* redis-py's modules of metrics */

    bool observed;                  /* observed.h */
    uint64_t looked;

    PyObject *commands;             /* name -> what is known of it (args.c) */
    PyObject *execute_command;      /* Client's own, as its type has it */
    PyObject *queue_command;        /* the same of Pipeline */
    PyObject *pubsub_hooks;         /* ((name, function), ...): PubSub's own methods */
    PyObject *read_response;        /* Connection's own */
    PyObject *push_log;             /* the logger of pushes, */
    PyObject *push_log_known;       /* what it knows of levels, or None, */
    PyObject *debug_level;          /* and that which it would be */
    PyObject *speller;              /* a client that says what it was to execute */
    PyObject *callbacks[CORE_CALLBACKS]; /* redis-py's, which callbacks.c has in C */

    PyObject *str_call;
    PyObject *str_notify;
    PyObject *str_set_result;
    PyObject *str_set_exception;
    PyObject *str_add_reader;
    PyObject *str_remove_reader;
    PyObject *str_is_closed;
    PyObject *str_call_soon_threadsafe;
    PyObject *str_keys;
    PyObject *str_never_decode;
    PyObject *str_empty_response;
    PyObject *str_open_channel;
    PyObject *str_execute_leased;
    PyObject *str_execute_deferred;
    PyObject *str_execute_command;
    PyObject *str_running_mark;
    PyObject *str_collector;
    PyObject *str_instance;
    PyObject *str_provider;
    PyObject *str_immediate_execute;
    PyObject *str_pipeline_execute;
    PyObject *str_type, *str_pattern, *str_channel, *str_data;
    PyObject *str_message, *str_pmessage, *str_smessage;
    PyObject *str_connection, *str_lease, *str_parser, *str_own_parser;
    PyObject *str_read_response, *str_health, *str_push_handler, *str_pushed, *str_handles_push;
    PyObject *str_channels, *str_patterns, *str_shard_channels;
    PyObject *str_subscribed, *str_receive;
    PyObject *str_claim_min_idle_time;
};

struct core_state {
    Py_ssize_t holders;             /* the module, and every object with an st */
    struct core_names names;
    struct core_future_state future;
    struct core_native_state native;
};

extern struct PyModuleDef core_module_def;

/* What PyModule_GetState points to. */
struct core_module {
    struct core_state *st;
};

/* The state of our module; NULL before it is executed and after it is freed.
 * Thread: any.  GIL: held.  Blocks: no.  Borrowed. */
static inline struct core_state *
core_state_of(PyObject *module)
{
    struct core_module *m = (struct core_module *)PyModule_GetState(module);

    return m != NULL ? m->st : NULL;
}

/* Keep the memory of the state for an object that stores the pointer:
 *     pool->st = core_state_hold(st);
 * and, at the very end of its tp_dealloc, core_state_drop(st).
 * Thread: any.  GIL: held.  Blocks: no. */
static inline struct core_state *
core_state_hold(struct core_state *st)
{
    st->holders++;
    return st;
}

/* NULL is allowed: an object that never came to hold it. */
void core_state_drop(struct core_state *st);

/* The state, found from a type that may be a Python subclass of ours; NULL with
 * an exception set when it is not (PyType_GetModuleByDef is 3.11's). */
struct core_state *core_state_of_type(PyTypeObject *type);

/* Import `module` and give its attribute `name`.
 * Thread: any.  GIL: held.  Blocks: may import.
 * Ownership: a new reference, NULL with an exception set. */
PyObject *core_import_attr(const char *module, const char *name);

/* One part of the module.  register runs once in the exec slot, in the order
 * of the table, and returns -1 with an exception set; visit is a traverse over
 * the part's fields; clear drops what can take part in a cycle and may run
 * twice, or after a register that failed half way. */
struct core_part {
    int (*register_part)(PyObject *module, struct core_state *st);
    int (*visit)(struct core_state *st, visitproc visit, void *arg);
    void (*clear)(struct core_state *st);
};

extern const struct core_part core_future_part;
extern const struct core_part core_native_part;
extern const struct core_part core_call_part;

/* Free what call_part.c keeps until the last holder of the state is gone. */
void core_call_state_fini(struct core_native_state *native);

#endif
