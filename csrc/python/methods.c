#include "methods.h"

#include <structmember.h>

#include "args.h"
#include "client_type.h"
#include "pipeline_type.h"

#define FEW 8     /* arguments of a method with options */
#define OPTIONS 4 /* options of a method, at most */
#define MAPPED 8  /* items of a mapping, at most */
#define SPELLED (1 + FEW + 2 * OPTIONS + 1 + 2 * MAPPED)

/* A parameter that puts a word, or a word and a number, behind the arguments. */
struct option {
    PyObject *name;  /* owned: the parameter's, interned */
    PyObject *token; /* owned: the word */
    bool number;     /* int or None; otherwise a bool */
    long group;      /* of one group there may be one */
    long least;      /* number */
};

struct core_method {
    PyObject_HEAD
    struct core_state *st;
    vectorcallfunc vectorcall;
    PyObject *function; /* owned: redis-py's */
    PyObject *name;     /* owned: the command's, for the response callback */
    PyObject *known;    /* owned: core_args_describe() of it */
    Py_ssize_t least, most;
    struct option options[OPTIONS]; /* in the order of the parameters */
    unsigned order[OPTIONS];        /* that of the words: indices of options */
    Py_ssize_t option_count;
    /* The class of the client that it was last called on, and its version: if that has
     * not changed, objects of it are no pipelines, and execute_command is Client's. */
    const PyTypeObject *seen;
    unsigned seen_version;
    PyObject *prefix; /* owned: a word before the arguments, or NULL */
    PyObject *mapped; /* owned: a word before the keys and the values of the last argument,
                       * a dict; or NULL */
};

/* ---- calling -------------------------------------------------------------------------- */

/* What reaches the wire as it is, whatever the method.  None, a bool, a timedelta, a
 * list, a str of the program's own kind: redis-py's function knows. */
static bool are_plain(PyObject *const *args, Py_ssize_t count)
{
    Py_ssize_t i;

    for (i = 0; i < count; i++) {
        const PyTypeObject *type = Py_TYPE(args[i]);

        if (type != &PyUnicode_Type && type != &PyBytes_Type && type != &PyLong_Type &&
            type != &PyFloat_Type)
            return false;
    }
    return true;
}

/* The options' values, NULL where not given.  False: one that is not known here. */
static bool sort_options(const struct core_method *method, PyObject *const *args, Py_ssize_t nargs,
                         PyObject *kwnames, PyObject **values)
{
    Py_ssize_t i, k, named = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);

    if (nargs < method->most || nargs - method->most > method->option_count)
        return false;
    for (i = 0; i < nargs - method->most; i++)
        values[i] = args[method->most + i];
    for (k = 0; k < named; k++) {
        /* Names written in a program are interned; any other is redis-py's affair. */
        for (i = 0; i < method->option_count; i++) {
            if (method->options[i].name == PyTuple_GET_ITEM(kwnames, k))
                break;
        }
        if (i == method->option_count || values[i] != NULL)
            return false;
        values[i] = args[nargs + k];
    }
    return true;
}

/* Put the options behind the arguments, in their order on the wire.  The new count, or
 * -1 where a value is of another type, too small, or two exclude each other. */
static Py_ssize_t append_options(const struct core_method *method, PyObject *const *values,
                                 PyObject **out, Py_ssize_t count)
{
    long groups = 0;
    Py_ssize_t k;

    for (k = 0; k < method->option_count; k++) {
        const struct option *option = &method->options[method->order[k]];
        PyObject *value = values[method->order[k]];
        int overflow = 0;

        if (value == NULL || value == (option->number ? Py_None : Py_False))
            continue;
        if (option->number ? !PyLong_CheckExact(value) : value != Py_True)
            return -1;
        if (option->number && option->least > LONG_MIN &&
            PyLong_AsLongAndOverflow(value, &overflow) < option->least && overflow <= 0)
            return -1;
        if (groups & 1L << option->group)
            return -1;
        groups |= 1L << option->group;
        out[count++] = option->token;
        if (option->number)
            out[count++] = value;
    }
    return count;
}

/* Whether an argument that is to be a mapping is a small dict of plain things. */
static bool is_plain_mapping(PyObject *arg)
{
    PyObject *item[2];
    Py_ssize_t pos = 0;

    if (!PyDict_CheckExact(arg) || PyDict_GET_SIZE(arg) < 1 || PyDict_GET_SIZE(arg) > MAPPED)
        return false;
    while (PyDict_Next(arg, &pos, &item[0], &item[1])) {
        if (!are_plain(item, 2))
            return false;
    }
    return true;
}

/* All keys, then all values.  The new count. */
static Py_ssize_t append_mapping(PyObject *mapping, PyObject **out, Py_ssize_t count)
{
    Py_ssize_t size = PyDict_GET_SIZE(mapping), pos = 0, i = 0;
    PyObject *key, *value;

    while (PyDict_Next(mapping, &pos, &key, &value)) {
        out[count + i] = key;
        out[count + size + i++] = value;
    }
    return count + 2 * size;
}

/* What is sent for arguments that are few and plain, and the values of options: into out.
 * Its count, or -1. */
static Py_ssize_t spell(const struct core_method *method, PyObject *const *args, Py_ssize_t nargs,
                        PyObject *const *values, PyObject **out)
{
    Py_ssize_t count = 0, plain = nargs - (method->mapped != NULL);

    if (method->prefix != NULL)
        out[count++] = method->prefix;
    memcpy(out + count, args, (size_t)plain * sizeof *out);
    count = append_options(method, values, out, count + plain);
    if (count < 0 || method->mapped == NULL)
        return count;
    out[count++] = method->mapped;
    return append_mapping(args[plain], out, count);
}

static bool is_seen(const struct core_method *method, const PyTypeObject *type)
{
    return method->seen == type && method->seen_version == type->tp_version_tag &&
           type->tp_version_tag != 0;
}

/* Whether the object's commands may take the short cut just now. */
static bool is_open(struct core_method *method, struct core_client *client, bool is_pipeline)
{
    struct core_native_state *native = &method->st->native;
    bool open;

    if (is_pipeline)
        return core_pipeline_queues((struct core_pipeline *)client) &&
               core_client_executes(client, native->queue_command) > 0;
    if (is_seen(method, Py_TYPE(client)))
        return core_client_is_changed(client) == 0;
    open = core_client_executes(client, native->execute_command) > 0;
    if (open) {
        method->seen = Py_TYPE(client);
        method->seen_version = Py_TYPE(client)->tp_version_tag;
    }
    return open;
}

/* The short cut.  NULL without an exception where it is not to be taken. */
static PyObject *send(struct core_method *method, PyObject *const *args, Py_ssize_t nargs,
                      PyObject *kwnames)
{
    struct core_given given = { .method = (PyObject *)method, .values = args + 1,
                                .nargs = nargs - 1, .names = kwnames };
    PyObject *values[OPTIONS] = { NULL }, *few[SPELLED];
    bool optional, spelled, declined = false, is_pipeline, mapped = method->mapped != NULL;
    struct core_client *client;

    if (nargs < 1 || (!is_seen(method, Py_TYPE(args[0])) &&
                      !PyObject_TypeCheck(args[0], method->st->native.client_type)))
        return NULL;
    client = (struct core_client *)args[0];
    is_pipeline = !is_seen(method, Py_TYPE(args[0])) &&
                  PyObject_TypeCheck(args[0], method->st->native.pipeline_type);
    args++;
    nargs--;
    optional = nargs > method->most || kwnames != NULL;
    if (optional && (method->option_count == 0 ||
                     !sort_options(method, args, nargs, kwnames, values)))
        return NULL;
    if (optional)
        nargs = method->most; /* what sort_options() left of them */
    if (nargs < method->least || !are_plain(args, nargs - mapped) ||
        (mapped && (is_pipeline || !is_plain_mapping(args[nargs - 1]))) ||
        !is_open(method, client, is_pipeline))
        return NULL;
    spelled = optional || mapped || method->prefix != NULL;
    if (spelled) {
        nargs = spell(method, args, nargs, values, few);
        if (nargs < 0)
            return NULL;
        args = few;
    }
    if (is_pipeline)
        return core_pipeline_queue(client, &given, method->known, args, nargs);
    return core_client_send(client, method->known, method->name, args, nargs, &declined);
}

static PyObject *method_call(PyObject *op, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    struct core_method *method = (struct core_method *)op;
    PyObject *result = send(method, args, PyVectorcall_NARGS(nargsf), kwnames);

    if (result != NULL || PyErr_Occurred())
        return result;
    return PyObject_Vectorcall(method->function, args, nargsf, kwnames);
}

PyObject *core_method_name_borrowed(PyObject *op)
{
    return ((struct core_method *)op)->name;
}

PyObject *core_method_spell(PyObject *op, PyObject *const *values, size_t nargs, PyObject *names)
{
    struct core_method *method = (struct core_method *)op;
    size_t total = nargs + (names == NULL ? 0 : (size_t)PyTuple_GET_SIZE(names));
    PyObject **copy = PyMem_Malloc((total + 1) * sizeof *copy), *pair;

    if (copy == NULL)
        return PyErr_NoMemory();
    copy[0] = method->st->native.speller;
    memcpy(copy + 1, values, total * sizeof *copy);
    pair = PyObject_Vectorcall(method->function, copy, nargs + 1, names);
    PyMem_Free(copy);
    return pair;
}

/* ---- being redis-py's function ----------------------------------------------------------- */

static PyObject *method_get(PyObject *op, PyObject *object, PyObject *type)
{
    (void)type;
    if (object == NULL || object == Py_None)
        return Py_NewRef(((struct core_method *)op)->function);
    return PyMethod_New(op, object);
}

static PyObject *method_getattro(PyObject *op, PyObject *name)
{
    struct core_method *method = (struct core_method *)op;

    if (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "__wrapped__") == 0)
        return Py_NewRef(method->function);
    return PyObject_GetAttr(method->function, name);
}

static PyObject *method_repr(PyObject *op)
{
    return PyUnicode_FromFormat("<native %R>", ((struct core_method *)op)->function);
}

/* ---- the type --------------------------------------------------------------------------------- */

static int take_option(struct core_method *method, PyObject *item, Py_ssize_t count)
{
    struct option *option = &method->options[method->option_count];
    PyObject *name, *token;
    int number;
    long place;

    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "UUplll:option", &name, &token, &number,
                                                  &option->group, &option->least, &place)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError,
                            "an option is (name, token, number, group, least, place)");
        return -1;
    }
    if (option->group < 0 || option->group >= OPTIONS || place < 0 || place >= count ||
        method->order[place] != OPTIONS) {
        PyErr_SetString(PyExc_ValueError, "Method: an option's group is 0 to 3, its place one of "
                                          "the options' and its own");
        return -1;
    }
    method->order[place] = (unsigned)method->option_count;
    option->name = Py_NewRef(name);
    PyUnicode_InternInPlace(&option->name);
    option->token = Py_NewRef(token);
    option->number = number != 0;
    method->option_count++;
    return 0;
}

/* Fill in a new method.  0, or -1 with an exception set. */
static int configure(struct core_method *method, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "function", "command", "least",  "most",
                             "options",  "prefix",  "mapped", NULL };
    PyObject *function, *name, *options = NULL, *prefix = Py_None, *mapped = Py_None;
    bool shared = false;
    Py_ssize_t i;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OUnn|O!OO:Method", names, &function, &name,
                                     &method->least, &method->most, &PyTuple_Type, &options,
                                     &prefix, &mapped))
        return -1;
    if (!PyCallable_Check(function) || method->least < 0 || method->most < method->least ||
        (options != NULL && PyTuple_GET_SIZE(options) > OPTIONS) ||
        (method->most > FEW && ((options != NULL && PyTuple_GET_SIZE(options) > 0) ||
                                prefix != Py_None || mapped != Py_None)) ||
        (mapped != Py_None && method->least < 1)) {
        PyErr_SetString(PyExc_ValueError, "Method: not a function and the arguments it takes");
        return -1;
    }
    if ((prefix != Py_None && !PyUnicode_Check(prefix)) ||
        (mapped != Py_None && !PyUnicode_Check(mapped))) {
        PyErr_SetString(PyExc_TypeError, "Method: prefix and mapped are words");
        return -1;
    }
    for (i = 0; i < OPTIONS; i++)
        method->order[i] = OPTIONS;
    for (i = 0; options != NULL && i < PyTuple_GET_SIZE(options); i++) {
        if (take_option(method, PyTuple_GET_ITEM(options, i), PyTuple_GET_SIZE(options)) < 0)
            return -1;
    }
    method->function = Py_NewRef(function);
    method->name = Py_NewRef(name);
    method->known = core_args_describe(method->st, name, &shared);
    if (method->known == NULL)
        return -1;
    method->prefix = prefix != Py_None ? Py_NewRef(prefix) : NULL;
    method->mapped = mapped != Py_None ? Py_NewRef(mapped) : NULL;
    /* Of one with a mapping the arguments decide; a pipeline asks redis-py's function. */
    if (!shared && method->mapped == NULL) {
        PyErr_Format(PyExc_ValueError, "Method: %U may not always share a connection", name);
        return -1;
    }
    return 0;
}

static PyObject *method_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct core_state *st = core_state_of_type(type);
    struct core_method *method = NULL;

    if (st != NULL)
        method = (struct core_method *)type->tp_alloc(type, 0);
    if (method == NULL)
        return NULL;
    method->st = core_state_hold(st);
    method->vectorcall = method_call;
    if (configure(method, args, kwargs) < 0)
        Py_CLEAR(method);
    return (PyObject *)method;
}

static int method_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_method *method = (struct core_method *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(method->function);
    return 0;
}

/* No tp_clear: the cycles that a Method is in go through the class that has it, which
 * breaks them, and a call may rely on its function. */
static void method_dealloc(PyObject *op)
{
    struct core_method *method = (struct core_method *)op;
    struct core_state *st = method->st;
    PyTypeObject *type = Py_TYPE(op);
    Py_ssize_t i;

    PyObject_GC_UnTrack(op);
    for (i = 0; i < OPTIONS; i++) {
        Py_CLEAR(method->options[i].name);
        Py_CLEAR(method->options[i].token);
    }
    Py_CLEAR(method->prefix);
    Py_CLEAR(method->mapped);
    Py_CLEAR(method->function);
    Py_CLEAR(method->name);
    Py_CLEAR(method->known);
    type->tp_free(op);
    Py_DECREF(type);
    core_state_drop(st);
}

static PyMemberDef method_members[] = {
    { "__vectorcalloffset__", T_PYSSIZET, offsetof(struct core_method, vectorcall), READONLY,
      NULL },
    { NULL, 0, 0, 0, NULL },
};

static PyType_Slot method_slots[] = {
    { Py_tp_doc, "Method(function, command, least, most, options=..., prefix=None, mapped=None)"
                 "\n--\n\n"
                 "A command method of redis-py's with a native short cut for a call with\n"
                 "least to most plain arguments." },
    { Py_tp_new, method_new },
    { Py_tp_dealloc, method_dealloc },
    { Py_tp_traverse, method_traverse },
    { Py_tp_call, PyVectorcall_Call },
    { Py_tp_descr_get, method_get },
    { Py_tp_getattro, method_getattro },
    { Py_tp_repr, method_repr },
    { Py_tp_members, method_members },
    { 0, NULL },
};

PyType_Spec core_method_spec = {
    .name = "offloop._core.Method",
    .basicsize = sizeof(struct core_method),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
             Py_TPFLAGS_METHOD_DESCRIPTOR | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = method_slots,
};
