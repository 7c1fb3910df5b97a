#include "entry.h"

#include <structmember.h>

struct core_entry {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    vectorcallfunc inner; /* native's own */
    PyObject *native;
    PyObject *function;
};

static PyObject *entry_call(PyObject *op, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    struct core_entry *entry = (struct core_entry *)op;

    return entry->inner(entry->native, args, nargsf, kwnames);
}

static PyObject *entry_get(PyObject *op, PyObject *object, PyObject *type)
{
    (void)type;
    if (object == NULL || object == Py_None)
        return Py_NewRef(((struct core_entry *)op)->function);
    return PyMethod_New(op, object);
}

PyObject *core_entry_native(struct core_state *st, PyObject *op)
{
    return Py_IS_TYPE(op, st->native.entry_type) ? ((struct core_entry *)op)->native : NULL;
}

/* What the bound method is asked for and has from here: the function's. */
static PyObject *entry_of_function(PyObject *op, void *name)
{
    return PyObject_GetAttrString(((struct core_entry *)op)->function, name);
}

/* inspect.signature() follows it. */
static PyObject *entry_wrapped(PyObject *op, void *unused)
{
    (void)unused;
    return Py_NewRef(((struct core_entry *)op)->function);
}

/* By which asyncio (up to 3.13) and inspect (from 3.12 on) know a coroutine function
 * that is none by its code. */
static PyObject *entry_mark(PyObject *op, void *name)
{
    (void)op;
    return core_import_attr(strcmp(name, "_is_coroutine") == 0 ? "asyncio.coroutines" : "inspect",
                            name);
}

static PyObject *entry_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "native", "function", NULL };
    PyObject *native, *function;
    struct core_entry *entry;
    vectorcallfunc inner;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:Entry", names, &native, &function))
        return NULL;
    inner = PyVectorcall_Function(native);
    if (inner == NULL || !PyFunction_Check(function)) {
        PyErr_SetString(PyExc_TypeError, "Entry: a native method and a Python function are wanted");
        return NULL;
    }
    entry = (struct core_entry *)type->tp_alloc(type, 0);
    if (entry == NULL)
        return NULL;
    entry->vectorcall = entry_call;
    entry->inner = inner;
    entry->native = Py_NewRef(native);
    entry->function = Py_NewRef(function);
    return (PyObject *)entry;
}

static int entry_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct core_entry *entry = (struct core_entry *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(entry->native);
    Py_VISIT(entry->function);
    return 0;
}

static int entry_clear(PyObject *op)
{
    /* The native method stays: it may be called still, and holds no cycle by itself. */
    Py_CLEAR(((struct core_entry *)op)->function);
    return 0;
}

static void entry_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    (void)entry_clear(op);
    Py_CLEAR(((struct core_entry *)op)->native);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyGetSetDef entry_getset[] = {
    { "__name__", entry_of_function, NULL, NULL, "__name__" },
    { "__qualname__", entry_of_function, NULL, NULL, "__qualname__" },
    { "__module__", entry_of_function, NULL, NULL, "__module__" },
    { "__doc__", entry_of_function, NULL, NULL, "__doc__" },
    { "__wrapped__", entry_wrapped, NULL, NULL, NULL },
    { "_is_coroutine", entry_mark, NULL, NULL, "_is_coroutine" },
    { "_is_coroutine_mark", entry_mark, NULL, NULL, "_is_coroutine_mark" },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyMemberDef entry_members[] = {
    { "__vectorcalloffset__", T_PYSSIZET, offsetof(struct core_entry, vectorcall), READONLY, NULL },
    { NULL, 0, 0, 0, NULL },
};

static PyType_Slot entry_slots[] = {
    { Py_tp_new, entry_new },
    { Py_tp_dealloc, entry_dealloc },
    { Py_tp_traverse, entry_traverse },
    { Py_tp_clear, entry_clear },
    { Py_tp_call, PyVectorcall_Call },
    { Py_tp_descr_get, entry_get },
    { Py_tp_getset, entry_getset },
    { Py_tp_members, entry_members },
    { 0, NULL },
};

PyType_Spec core_entry_spec = {
    .name = "offloop._core.Entry",
    .basicsize = sizeof(struct core_entry),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
             Py_TPFLAGS_METHOD_DESCRIPTOR,
    .slots = entry_slots,
};
