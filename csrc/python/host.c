#include "host.h"

#include "bridge.h"
#include "errors.h"
#include "pool_type.h"

/* The GIL is not kept for longer from call to call: loops have to have it, too. */
#define HOLD_NS (250 * RT_US)

#define PAUSE_MAX 64
#define MEET_NS (30 * RT_US) /* a loop's step after it has made a call */

/* What a worker keeps of Python. */
struct guest {
    struct core_host *host;
    PyThreadState *ts;
    PyObject *forget; /* owned; called when the thread ends */
    bool known;       /* it was introduced to Python */
    uint64_t entered; /* when the GIL was taken */
    uint64_t computed; /* what the thread had computed then, in ns */
    struct rt_habit meeting; /* waits for a loop to let go of the GIL */
};

static uint64_t computed_here(void)
{
    struct timespec ts = { 0, 0 };

    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * RT_SEC + (uint64_t)ts.tv_nsec;
}

/* What is about to go home to a loop that is closed is dropped here and now: nobody
 * may ever look for it there.  Looked at once for all that was done in a row. */
static void drop_if_homeless(struct rt_worker *worker)
{
    struct core_bridge *bridge;

    if (worker->finished.head == NULL)
        return;
    bridge = core_job_of(worker->finished.head)->bridge;
    if (!core_bridge_is_homeless(bridge))
        return;
    Py_INCREF(bridge);
    rt_worker_post(worker);
    core_bridge_discard(bridge);
    Py_DECREF(bridge);
}

static void leave(struct rt_worker *worker)
{
    const struct guest *guest = worker->guest;

    drop_if_homeless(worker);
    worker->held = false;
    (void)PyEval_SaveThread();
    core_baton_pass(&guest->host->baton, worker);
    /* Partner: the look at it in core_host_quit(). */
    atomic_fetch_sub(&guest->host->inside, 1);
}

static bool go_in(struct core_host *host);
static struct guest *make_guest(struct core_host *host);

/* What was posted just now may be for a loop that died at the same time, after which
 * nobody looked.  Partner: core_bridge_discard(), which counts before it looks. */
static void idle(struct rt_worker *worker)
{
    struct core_host *host =
        RT_CONTAINER_OF((struct rt_host *)(uintptr_t)worker->pool->host, struct core_host, rt);
    struct guest *guest = worker->guest;

    rt_fence();
    if (atomic_load(&host->orphan_count) == 0 || !go_in(host))
        return;
    if (guest == NULL)
        worker->guest = guest = make_guest(host);
    if (guest != NULL) {
        PyEval_RestoreThread(guest->ts);
        core_bridge_discard_orphans(host);
        (void)PyEval_SaveThread();
    }
    atomic_fetch_sub(&host->inside, 1);
}

/* Count in, unless the gate is shut. */
static bool go_in(struct core_host *host)
{
    atomic_fetch_add(&host->inside, 1);
    /* Partner: the store in core_host_quit(). */
    if (atomic_load(&host->shut) == 0)
        return true;
    atomic_fetch_sub(&host->inside, 1);
    return false;
}

static void ended(struct rt_worker *worker)
{
    struct guest *guest = worker->guest;
    struct core_host *host = guest->host;
    PyObject *done;

    worker->guest = NULL;
    if (go_in(host)) {
        PyEval_RestoreThread(guest->ts);
        if (guest->forget != NULL) {
            done = PyObject_CallNoArgs(guest->forget);
            if (done == NULL)
                PyErr_WriteUnraisable(guest->forget);
            Py_XDECREF(done);
            Py_CLEAR(guest->forget);
        }
        PyThreadState_Clear(guest->ts);
        PyThreadState_DeleteCurrent();
        atomic_fetch_sub(&host->inside, 1);
    }
    free(guest);
    core_host_drop(host);
}

struct core_host *core_host_new(void)
{
    struct core_host *host = calloc(1, sizeof *host);

    if (host == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    host->rt = (struct rt_host){ .leave = leave, .idle = idle, .ended = ended };
    host->interp = PyInterpreterState_Get();
    if (core_baton_init(&host->baton) < 0) {
        free(host);
        PyErr_NoMemory();
        return NULL;
    }
    atomic_init(&host->refs, 1);
    return host;
}

void core_host_drop(struct core_host *host)
{
    /* Partner: the same line in other threads; the last one frees. */
    if (host == NULL || atomic_fetch_sub_explicit(&host->refs, 1, memory_order_acq_rel) != 1)
        return;
    core_baton_fini(&host->baton);
    free(host);
}

static struct guest *make_guest(struct core_host *host)
{
    struct guest *guest = calloc(1, sizeof *guest);

    if (guest == NULL)
        return NULL;
    /* By the thread itself, which PyGILState_Ensure() then knows it by. */
    guest->ts = PyThreadState_New(host->interp);
    if (guest->ts == NULL) {
        free(guest);
        return NULL;
    }
    guest->host = host;
    rt_habit_init(&guest->meeting, PAUSE_MAX);
    atomic_fetch_add_explicit(&host->refs, 1, memory_order_relaxed);
    return guest;
}

/* Name the thread and call the initializer; a pool whose initializer fails is
 * broken. */
static void introduce(struct rt_worker *worker, struct guest *guest, struct core_pool *pool)
{
    const struct core_native_state *native = &pool->st->native;
    PyObject *adopt = native->adopt, *well = NULL;

    guest->known = true;
    if (adopt == NULL)
        return;
    guest->forget = Py_XNewRef(native->forget);
    Py_INCREF(adopt);
    well = PyObject_CallFunction(adopt, "OIOO", pool->prefix != NULL ? pool->prefix : Py_None,
                                 worker->index,
                                 pool->initializer != NULL ? pool->initializer : Py_None,
                                 pool->initargs != NULL ? pool->initargs : Py_None);
    if (well == NULL)
        PyErr_WriteUnraisable(adopt);
    if (well != Py_True)
        pool->broken = true;
    Py_XDECREF(well);
    Py_DECREF(adopt);
}

void core_host_meet(struct rt_worker *worker, const struct core_busy_poll *loop)
{
    struct guest *guest = worker->guest;
    uint64_t began, now;
    bool met;

    if (!worker->watched || worker->held || guest == NULL || !rt_habit_tries(&guest->meeting))
        return;
    began = now = rt_now();
    while (!(met = core_busy_poll_place(loop) == CORE_LOOKS_WITHOUT_GIL) && now - began < MEET_NS) {
        rt_pause();
        now = rt_now();
    }
    rt_habit_learn(&guest->meeting, met, true);
}

bool core_host_enter(struct rt_worker *worker, struct core_pool *pool)
{
    struct guest *guest = worker->guest;
    struct core_host *host = pool->st->native.host;

    if (worker->held)
        return true;
    if (!go_in(host))
        return false;
    if (guest == NULL) {
        guest = make_guest(host);
        if (guest == NULL) {
            atomic_fetch_sub(&host->inside, 1);
            return false;
        }
        worker->guest = guest;
    }
    core_baton_take(&host->baton, worker, guest->ts);
    worker->held = true;
    guest->entered = rt_now();
    guest->computed = computed_here();
    if (!guest->known)
        introduce(worker, guest, pool);
    return true;
}

void core_host_share(struct rt_worker *worker)
{
    const struct guest *guest = worker->guest;

    uint64_t passed = rt_now() - guest->entered;

    if (passed <= HOLD_NS)
        return;
    core_baton_learn(&guest->host->baton, passed, computed_here() - guest->computed);
    rt_worker_leave(worker);
}

/* ---- the interpreter's end -------------------------------------------------------------- */

/* Sleep for a moment without the GIL.  -1: a signal's handler raised. */
static int nap(void)
{
    const struct timespec tick = { .tv_nsec = 1000 * 1000 };

    Py_BEGIN_ALLOW_THREADS
    nanosleep(&tick, NULL);
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals();
}

/* _quit(grace): as ThreadPoolExecutor does, finish what was submitted to executors;
 * then let no call begin any more, and wait grace seconds for those under way. */
PyObject *core_host_quit(PyObject *module, PyObject *seconds)
{
    struct core_host *host = core_state_of(module)->native.host;
    double grace = PyFloat_AsDouble(seconds);
    uint64_t until;
    int rc = 0;

    if (grace == -1.0 && PyErr_Occurred())
        return NULL;
    host->exiting = true;
    while (rc == 0 && atomic_load(&host->submitted) != 0)
        rc = nap();
    /* Partner: the look at it in go_in(). */
    atomic_store(&host->shut, 1);
    until = rt_after(rt_now(), grace <= 0 ? 0 : (uint64_t)(grace * 1e9));
    while (rc == 0 && atomic_load(&host->inside) != 0 && rt_now() < until)
        rc = nap();
    if (rc < 0)
        return NULL;
    return PyBool_FromLong(atomic_load(&host->inside) == 0);
}

/* _forked(): in a forked child, where no worker is. */
PyObject *core_host_forked(PyObject *module, PyObject *unused)
{
    struct core_host *host = core_state_of(module)->native.host;

    (void)unused;
    atomic_store(&host->inside, 0);
    atomic_store(&host->submitted, 0);
    atomic_store(&host->orphan_count, 0);
    host->orphans = NULL;
    (void)core_baton_init(&host->baton); /* some worker may have held it */
    Py_RETURN_NONE;
}
