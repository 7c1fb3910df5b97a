#include "busy_poll.h"

#include <poll.h>

#include "../runtime/rt_base.h"

#define PAUSE_MAX 64
#define LONGER 3 /* times, after a pause; */
#define LONGEST (500 * RT_US) /* if it is no longer than that: timers wait meanwhile */
#define TURN_NS (300 * RT_US) /* then timers and sockets have their turn */

/* The descriptor of the loop's selector, or -1; no exception is set. */
static int selector_of(PyObject *loop)
{
    PyObject *selector = PyObject_GetAttrString(loop, "_selector"), *fd = NULL;
    int number = -1;

    if (selector != NULL)
        fd = PyObject_CallMethod(selector, "fileno", NULL);
    if (fd != NULL)
        number = PyObject_AsFileDescriptor(fd);
    PyErr_Clear();
    Py_XDECREF(fd);
    Py_XDECREF(selector);
    return number;
}

void core_busy_poll_init(struct core_busy_poll *bp, PyObject *loop, uint64_t limit)
{
    memset(bp, 0, sizeof *bp);
    bp->limit = limit;
    rt_habit_init(&bp->habit, PAUSE_MAX);
    bp->selector = limit > 0 ? selector_of(loop) : -1;
    if (bp->selector < 0)
        return;
    bp->ready = PyObject_GetAttrString(loop, "_ready");
    if (bp->ready == NULL || !PySequence_Check(bp->ready))
        Py_CLEAR(bp->ready);
    PyErr_Clear();
}

void core_busy_poll_begin(struct core_busy_poll *bp)
{
    if (bp->ready != NULL)
        bp->turn = rt_now();
}

/* Whether the loop has nothing to run. */
static bool is_idle(const struct core_busy_poll *bp)
{
    Py_ssize_t size = PyObject_Size(bp->ready);

    if (size < 0)
        PyErr_Clear();
    return size == 0;
}

/* Whether it is worth a try just now. */
static bool is_worth(struct core_busy_poll *bp)
{
    if (bp->ready == NULL || !bp->sent)
        return false;
    bp->sent = false;
    return rt_habit_tries(&bp->habit);
}

bool core_busy_poll(struct core_busy_poll *bp, int fd, bool calls)
{
    struct pollfd fds[2] = { { .fd = fd, .events = POLLIN },
                             { .fd = bp->selector, .events = POLLIN } };
    uint64_t began, now, limit = bp->limit;
    int found = 0;
    bool hit;

    if (!is_worth(bp) || !is_idle(bp))
        return false;
    began = now = rt_now();
    if (began - bp->turn > TURN_NS)
        return false;
    /* A worker that sleeps has to be woken first, to be found awake from then on. */
    if (calls && bp->habit.pause != 0 && LONGER * limit <= LONGEST)
        limit *= LONGER;
    bp->tries++;
    atomic_store_explicit(&bp->place, CORE_LOOKS, memory_order_relaxed);
    Py_BEGIN_ALLOW_THREADS
    atomic_store_explicit(&bp->place, CORE_LOOKS_WITHOUT_GIL, memory_order_relaxed);
    while (found == 0 && now - began < limit) {
        found = poll(fds, 2, 0);
        now = rt_now();
    }
    /* The selector has the mailbox, too: it may have come between the two looks. */
    if (found > 0 && fds[0].revents == 0)
        (void)poll(fds, 1, 0);
    atomic_store_explicit(&bp->place, CORE_ELSEWHERE, memory_order_relaxed);
    Py_END_ALLOW_THREADS
    hit = found > 0 && fds[0].revents != 0;
    bp->hits += hit;
    if (hit || found <= 0)
        rt_habit_learn(&bp->habit, hit, rt_now() - began <= bp->limit / 2);
    return hit;
}
