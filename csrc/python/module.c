/* offloop._core: multi-phase init, and the table of the module's parts. */
#include "core.h"

/* Order matters twice: a later part may use what an earlier one made, and
 * clear runs backwards. */
static const struct core_part *const core_parts[] = {
    &core_future_part,
    &core_native_part,
    &core_call_part,
};

#define CORE_N_PARTS ((int)(sizeof core_parts / sizeof core_parts[0]))

struct core_state *core_state_of_type(PyTypeObject *type)
{
    PyObject *mro = type->tp_mro;
    Py_ssize_t i;

    for (i = 0; i < PyTuple_GET_SIZE(mro); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(mro, i);
        PyObject *module;

        if (!PyType_HasFeature(base, Py_TPFLAGS_HEAPTYPE))
            continue;
        module = ((PyHeapTypeObject *)base)->ht_module;
        if (module != NULL && PyModule_GetDef(module) == &core_module_def)
            return core_state_of(module);
    }
    PyErr_SetString(PyExc_SystemError, "not a type of offloop._core");
    return NULL;
}

PyObject *
core_import_attr(const char *module, const char *name)
{
    PyObject *mod = PyImport_ImportModule(module);
    PyObject *attr = NULL;

    if (mod != NULL)
        attr = PyObject_GetAttrString(mod, name);
    Py_XDECREF(mod);
    return attr;
}

static int
core_intern_names(struct core_names *n)
{
    const struct {
        PyObject **where;
        const char *text;
    } table[] = {
        {&n->call_soon, "call_soon"},
        {&n->call_exception_handler, "call_exception_handler"},
        {&n->context, "context"},
        {&n->exception, "exception"},
        {&n->future, "future"},
        {&n->get_debug, "get_debug"},
        {&n->message, "message"},
        {&n->msg, "msg"},
        {&n->source_traceback, "source_traceback"},
    };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        *table[i].where = PyUnicode_InternFromString(table[i].text);
        if (*table[i].where == NULL)
            return -1;
    }
    return 0;
}

static int
core_exec(PyObject *module)
{
    struct core_module *m = (struct core_module *)PyModule_GetState(module);
    struct core_state *st = PyMem_Calloc(1, sizeof *st);

    if (st == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    m->st = core_state_hold(st);
    if (core_intern_names(&st->names) < 0)
        return -1;
    for (int i = 0; i < CORE_N_PARTS; i++)
        if (core_parts[i]->register_part(module, st) < 0)
            return -1;
    return 0;
}

static int
core_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct core_state *st = core_state_of(module);
    int rc = 0;

    /* The collector may come between the allocation of the module object and
     * that of its state. */
    for (int i = 0; st != NULL && i < CORE_N_PARTS && rc == 0; i++)
        rc = core_parts[i]->visit(st, visit, arg);
    return rc;
}

static int
core_clear(PyObject *module)
{
    struct core_state *st = core_state_of(module);

    for (int i = CORE_N_PARTS - 1; st != NULL && i >= 0; i--)
        core_parts[i]->clear(st);
    return 0;
}

/* The names live as long as the state: strings take part in no cycle, and an
 * object that dies after core_clear may still call its loop. */
void
core_state_drop(struct core_state *st)
{
    if (st == NULL || --st->holders > 0)
        return;
    core_call_state_fini(&st->native);
    Py_CLEAR(st->names.call_soon);
    Py_CLEAR(st->names.call_exception_handler);
    Py_CLEAR(st->names.context);
    Py_CLEAR(st->names.exception);
    Py_CLEAR(st->names.future);
    Py_CLEAR(st->names.get_debug);
    Py_CLEAR(st->names.message);
    Py_CLEAR(st->names.msg);
    Py_CLEAR(st->names.source_traceback);
    PyMem_Free(st);
}

static void
core_free(void *module)
{
    struct core_module *m = (struct core_module *)PyModule_GetState(module);
    struct core_state *st = m != NULL ? m->st : NULL;

    if (st == NULL)
        return;
    (void)core_clear((PyObject *)module);
    m->st = NULL;
    core_state_drop(st);
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
    {0, NULL},
};

struct PyModuleDef core_module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "offloop._core",
    .m_doc = "The native part of offloop: the pool, its loop bridge and the "
             "awaitable.",
    .m_size = sizeof(struct core_module),
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
    .m_free = core_free,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&core_module_def);
}
