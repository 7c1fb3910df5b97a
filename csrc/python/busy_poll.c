#include "busy_poll.h"

#include <poll.h>
#include <sched.h>

#include "../runtime/rt_base.h"

#define TURN_NS (300 * RT_US) /* then timers and sockets have their turn */
#define SCORE_MAX 8
#define PAUSE_MAX 1024

static bool has_two_cpus(void)
{
    cpu_set_t set;

    /* With more CPUs than the set has room for the call fails. */
    return sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) > 1;
}

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
    bp->score = SCORE_MAX;
    bp->selector = limit > 0 && has_two_cpus() ? selector_of(loop) : -1;
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
    if (bp->score < 0 && bp->skip > 0) {
        bp->skip--;
        return false;
    }
    return true;
}

/* What a try that took so many ns was worth. */
static void learn(struct core_busy_poll *bp, bool hit, uint64_t took)
{
    bp->hits += hit;
    if (hit && took <= bp->limit / 2) {
        if (bp->score < SCORE_MAX)
            bp->score++;
        bp->pause = 0;
        return;
    }
    if (bp->score >= 0)
        bp->score -= hit ? 1 : 2;
    if (bp->score < 0) {
        bp->pause = bp->pause == 0 ? 1 : 2 * bp->pause;
        if (bp->pause > PAUSE_MAX)
            bp->pause = PAUSE_MAX;
        bp->skip = bp->pause;
    }
}

bool core_busy_poll(struct core_busy_poll *bp, int fd)
{
    struct pollfd fds[2] = { { .fd = fd, .events = POLLIN },
                             { .fd = bp->selector, .events = POLLIN } };
    uint64_t began, now, end;
    int found = 0;
    bool hit;

    if (!is_worth(bp) || !is_idle(bp))
        return false;
    began = now = rt_now();
    if (began - bp->turn > TURN_NS)
        return false;
    end = began + bp->limit;
    bp->tries++;
    Py_BEGIN_ALLOW_THREADS
    while (found == 0 && now < end) {
        found = poll(fds, 2, 0);
        now = rt_now();
    }
    Py_END_ALLOW_THREADS
    hit = found > 0 && fds[0].revents != 0;
    if (hit || found <= 0)
        learn(bp, hit, rt_now() - began);
    return hit;
}
