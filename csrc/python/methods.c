#include "methods.h"

#include <structmember.h>

#include "args.h"
#include "client_type.h"

#define FEW 4 /* arguments of a method whose last one has a default */

struct core_method {
    PyObject_HEAD
    struct core_state *st;
    vectorcallfunc vectorcall;
    PyObject *function; /* owned: redis-py's */
    PyObject *name;     /* owned: the command's, for the response callback */
    PyObject *known;    /* owned: core_args_describe() of it */
    PyObject *last;     /* owned: the last argument where it is left out, or NULL */
    Py_ssize_t least, most;
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

/* The short cut.  NULL without an exception where it is not to be taken. */
static PyObject *send(struct core_method *method, PyObject *const *args, Py_ssize_t nargs)
{
    struct core_client *client;
    PyObject *few[FEW], *result;
    bool declined = false;
    int ours;

    if (nargs < 1 || !PyObject_TypeCheck(args[0], method->st->native.client_type))
        return NULL;
    client = (struct core_client *)args[0];
    args++;
    nargs--;
    if (nargs < method->least || nargs > method->most || !are_plain(args, nargs))
        return NULL;
    ours = core_client_executes(client);
    if (ours <= 0)
        return NULL;
    if (method->last != NULL && nargs < method->most) {
        memcpy(few, args, (size_t)nargs * sizeof *few);
        few[nargs++] = method->last;
        args = few;
    }
    result = core_client_send(client, method->known, method->name, args, nargs, &declined);
    return result;
}

static PyObject *method_call(PyObject *op, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    struct core_method *method = (struct core_method *)op;
    PyObject *result;

    if (kwnames == NULL || PyTuple_GET_SIZE(kwnames) == 0) {
        result = send(method, args, PyVectorcall_NARGS(nargsf));
        if (result != NULL || PyErr_Occurred())
            return result;
    }
    return PyObject_Vectorcall(method->function, args, nargsf, kwnames);
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

static PyObject *method_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "function", "command", "least", "most", "last", NULL };
    struct core_state *st = core_state_of_type(type);
    PyObject *function, *name, *known = NULL, *last = NULL;
    struct core_method *method;
    Py_ssize_t least, most;
    bool shared = false;

    if (st == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "OUnn|O:Method", names, &function,
                                                   &name, &least, &most, &last))
        return NULL;
    if (!PyCallable_Check(function) || least < 0 || most < least ||
        (last != NULL && (least != most - 1 || most > FEW))) {
        PyErr_SetString(PyExc_ValueError, "Method: not a function and the arguments it takes");
        return NULL;
    }
    known = core_args_describe(st, name, &shared);
    if (known == NULL)
        return NULL;
    if (!shared) {
        PyErr_Format(PyExc_ValueError, "Method: %U may not always share a connection", name);
        Py_DECREF(known);
        return NULL;
    }
    method = (struct core_method *)type->tp_alloc(type, 0);
    if (method == NULL) {
        Py_DECREF(known);
        return NULL;
    }
    method->st = core_state_hold(st);
    method->vectorcall = method_call;
    method->function = Py_NewRef(function);
    method->name = Py_NewRef(name);
    method->known = known;
    method->last = Py_XNewRef(last);
    method->least = least;
    method->most = most;
    return (PyObject *)method;
}

static int method_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_method *method = (struct core_method *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(method->function);
    Py_VISIT(method->last);
    return 0;
}

/* No tp_clear: the cycles that a Method is in go through the class that has it, which
 * breaks them, and a call may rely on its function. */
static void method_dealloc(PyObject *op)
{
    struct core_method *method = (struct core_method *)op;
    struct core_state *st = method->st;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    Py_CLEAR(method->function);
    Py_CLEAR(method->name);
    Py_CLEAR(method->known);
    Py_CLEAR(method->last);
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
    { Py_tp_doc, "Method(function, command, least, most, last=...)\n--\n\n"
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
