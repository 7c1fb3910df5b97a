#include "rt_poller.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "rt_worker.h"

enum { AWAKE = 0, ASLEEP = 1, RUNG = 2 };

int rt_poller_init(struct rt_poller *p)
{
    /* Edge-triggered and never read: every write is a new edge, so waking up
     * costs no read. */
    struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.ptr = NULL };

    memset(p, 0, sizeof *p);
    p->epfd = p->bellfd = -1;
    rt_stack_init(&p->attention);
    rt_stack_init(&p->retired);
    rt_stack_init(&p->lowered);
    atomic_init(&p->sleep, AWAKE);
    atomic_init(&p->next_due, RT_NEVER);
    atomic_init(&p->own_due, RT_NEVER);
    if (pthread_mutex_init(&p->lock, NULL) != 0)
        return RT_ESYS;
    p->epfd = epoll_create1(EPOLL_CLOEXEC);
    p->bellfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (p->epfd < 0 || p->bellfd < 0 || epoll_ctl(p->epfd, EPOLL_CTL_ADD, p->bellfd, &ev) < 0) {
        rt_poller_fini(p);
        return RT_ESYS;
    }
    return RT_OK;
}

static void free_retired(struct rt_node *node)
{
    while (node != NULL) {
        struct rt_source *src = RT_CONTAINER_OF(node, struct rt_source, retired_node);

        node = node->next;
        src->destroy(src);
    }
}

void rt_poller_free_retired(struct rt_poller *p)
{
    free_retired(rt_stack_take(&p->retired));
}

void rt_poller_shut(struct rt_poller *p)
{
    /* Nobody sleeps here any more, so nobody begins to ring; who had begun is
     * done in a moment.  Partner: the count in rt_poller_bell(). */
    while (atomic_load(&p->ringers) != 0)
        sched_yield();
    if (p->epfd >= 0)
        close(p->epfd);
    if (p->bellfd >= 0)
        close(p->bellfd);
    p->epfd = p->bellfd = -1;
}

void rt_poller_fini(struct rt_poller *p)
{
    rt_poller_free_retired(p);
    rt_poller_shut(p);
    rt_dues_fini(&p->dues);
    pthread_mutex_destroy(&p->lock);
}

void rt_poller_bell(struct rt_poller *p)
{
    const uint64_t one = 1;
    uint32_t asleep = ASLEEP;
    ssize_t n;

    /* Partner: the store of ASLEEP in sleep_until_something(). */
    rt_fence();
    if (atomic_load(&p->sleep) != ASLEEP)
        return;
    /* Counted before the exchange, so that the descriptor stays until the write
     * is over.  Partner: rt_poller_shut(), after the last sleep. */
    atomic_fetch_add(&p->ringers, 1);
    if (atomic_compare_exchange_strong(&p->sleep, &asleep, RUNG)) {
        rt_count(&p->bells, 1);
        do {
            n = write(p->bellfd, &one, sizeof one);
        } while (n < 0 && errno == EINTR);
    }
    atomic_fetch_sub(&p->ringers, 1);
}

void rt_poller_due(struct rt_poller *p, uint64_t when)
{
    rt_atomic_min(&p->own_due, when);
    if (rt_atomic_min(&p->next_due, when))
        rt_poller_bell(p);
}

bool rt_poller_close(struct rt_poller *p)
{
    bool closed;

    pthread_mutex_lock(&p->lock);
    closed = p->closed = p->closed || atomic_load(&p->count) == 0;
    pthread_mutex_unlock(&p->lock);
    return closed;
}

int rt_source_add(struct rt_poller *p, struct rt_source *src)
{
    int err;

    src->poller = p;
    src->prev = NULL;
    atomic_init(&src->rung, 0);
    atomic_init(&src->what, 0);
    atomic_init(&src->due, RT_NEVER);
    atomic_init(&src->lowered, 0);
    src->place = 0;
    pthread_mutex_lock(&p->lock);
    if (p->closed || !rt_dues_reserve(&p->dues, atomic_load(&p->count) + 1)) {
        err = p->closed ? RT_ECLOSED : RT_ENOMEM;
        pthread_mutex_unlock(&p->lock);
        return err;
    }
    src->next = p->sources;
    if (src->next != NULL)
        src->next->prev = src;
    p->sources = src;
    atomic_fetch_add(&p->count, 1);
    pthread_mutex_unlock(&p->lock);
    return RT_OK;
}

/* Put what was lowered where it belongs.  Thread: who holds the lock. */
static void absorb(struct rt_poller *p)
{
    struct rt_node *node = rt_stack_take(&p->lowered);

    while (node != NULL) {
        struct rt_source *src = RT_CONTAINER_OF(node, struct rt_source, lowered_node);

        node = node->next;
        /* Before looking: who lowers it later must push it again.
         * Partner: the exchange in rt_source_due(). */
        atomic_exchange(&src->lowered, 0);
        rt_dues_put(&p->dues, src, atomic_load(&src->due));
    }
}

bool rt_source_retire(struct rt_source *src)
{
    struct rt_poller *p = src->poller;

    /* Rung for ever: nobody pushes it onto the attention stack again, so it is
     * in nobody's hands once the present turn is over.
     * Partner: the exchange in rt_source_attend(). */
    if (atomic_exchange(&src->rung, 1) != 0)
        return false;
    pthread_mutex_lock(&p->lock);
    absorb(p);
    pthread_mutex_unlock(&p->lock);
    /* Lowered for ever, likewise.  Partner: the exchange in rt_source_due(). */
    if (atomic_exchange(&src->lowered, 1) != 0) {
        /* Somebody lowers it at this moment. */
        atomic_exchange(&src->rung, 0);
        rt_source_attend(src, 0);
        return false;
    }
    pthread_mutex_lock(&p->lock);
    if (src->prev != NULL)
        src->prev->next = src->next;
    else
        p->sources = src->next;
    if (src->next != NULL)
        src->next->prev = src->prev;
    rt_dues_remove(&p->dues, src);
    atomic_fetch_sub(&p->count, 1);
    pthread_mutex_unlock(&p->lock);
    rt_stack_push(&p->retired, &src->retired_node);
    rt_poller_bell(p);
    return true;
}

void rt_source_attend(struct rt_source *src, uint32_t what)
{
    struct rt_poller *p = src->poller;

    if ((what & ~(uint32_t)RT_ATTEND) != 0)
        atomic_fetch_or(&src->what, what);
    /* Partner: the exchange in look(). */
    if (atomic_exchange(&src->rung, 1) != 0)
        return;
    rt_stack_push(&p->attention, &src->node);
    rt_poller_bell(p);
}

void rt_source_due(struct rt_source *src, uint64_t when)
{
    struct rt_poller *p = src->poller;

    if (!rt_atomic_min(&src->due, when))
        return;
    /* Partner: the exchange in absorb(). */
    if (atomic_exchange(&src->lowered, 1) == 0)
        rt_stack_push(&p->lowered, &src->lowered_node);
    if (rt_atomic_min(&p->next_due, when))
        rt_poller_bell(p);
}

int rt_source_watch(struct rt_source *src, int fd, bool write, bool known)
{
    struct epoll_event ev = {
        .events = EPOLLIN | EPOLLRDHUP | EPOLLET | (write ? (uint32_t)EPOLLOUT : 0u),
        .data.ptr = src,
    };

    if (epoll_ctl(src->poller->epfd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev) < 0)
        return RT_ESYS;
    return RT_OK;
}

void rt_source_unwatch(struct rt_source *src, int fd)
{
    (void)epoll_ctl(src->poller->epfd, EPOLL_CTL_DEL, fd, NULL);
}

/* Mark every source whose deadline passed; find the next one. */
static void find_due(struct rt_poller *p, uint64_t now)
{
    struct rt_source *src;
    uint64_t own, when = RT_NEVER, due;

    /* Raise first: whoever lowers `due` after we have looked lowers next_due
     * after this.  Partner: rt_source_due(), rt_poller_due(). */
    atomic_exchange(&p->next_due, RT_NEVER);
    own = atomic_load(&p->own_due);
    if (own > now)
        rt_atomic_min(&p->next_due, own);
    pthread_mutex_lock(&p->lock);
    absorb(p);
    while ((src = rt_dues_next(&p->dues, &when)) != NULL && when <= now) {
        rt_dues_remove(&p->dues, src);
        due = atomic_load(&src->due);
        if (due <= now) {
            /* Its handler sets it anew. */
            atomic_store(&src->due, RT_NEVER);
            rt_source_attend(src, RT_DUE);
        } else {
            rt_dues_put(&p->dues, src, due);
        }
    }
    if (src != NULL)
        rt_atomic_min(&p->next_due, when);
    pthread_mutex_unlock(&p->lock);
}

static void look(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    what |= atomic_exchange(&src->what, 0);
    src->handle(src, what, worker);
}

/* Returns false when the lead was passed on meanwhile. */
static bool attend_all(struct rt_poller *p, struct rt_worker *worker)
{
    worker->todo = rt_stack_take(&p->attention);
    while (worker->todo != NULL) {
        struct rt_source *src = RT_CONTAINER_OF(worker->todo, struct rt_source, node);

        worker->todo = worker->todo->next;
        /* Before looking: who attends later must push again.
         * Partner: the exchange in rt_source_attend(). */
        atomic_exchange(&src->rung, 0);
        look(src, RT_ATTEND, worker);
        if (!worker->leading)
            return false;
    }
    return true;
}

uint32_t rt_poller_what(uint32_t events)
{
    uint32_t what = 0;

    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        what |= RT_READABLE;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        what |= RT_HANGUP;
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        what |= RT_WRITABLE;
    return what;
}

void rt_poller_put_back(struct rt_poller *p, struct rt_worker *worker)
{
    while (worker->todo != NULL) {
        struct rt_node *node = worker->todo;

        worker->todo = node->next;
        rt_stack_push(&p->attention, node); /* it is still rung */
    }
    while (worker->next_event < worker->event_count) {
        const struct epoll_event *ev = &worker->events[worker->next_event++];

        if (ev->data.ptr != NULL)
            rt_source_attend(ev->data.ptr, rt_poller_what(ev->events));
    }
}

static int timeout_ms(uint64_t due)
{
    uint64_t now, ms;

    if (due == RT_NEVER)
        return -1;
    now = rt_now();
    if (due <= now)
        return 0;
    ms = (due - now + RT_MS - 1) / RT_MS;
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

/* Fetch events, asleep if need be. */
static void fetch(struct rt_poller *p, struct rt_worker *worker,
                  bool (*stay_awake)(struct rt_worker *worker))
{
    int n, timeout = 0;

    /* Partner: the fence in rt_poller_bell(). */
    atomic_exchange(&p->sleep, ASLEEP);
    if (rt_stack_empty(&p->attention) && rt_stack_empty(&p->retired) && !stay_awake(worker))
        timeout = timeout_ms(atomic_load(&p->next_due));
    n = epoll_wait(p->epfd, worker->events, RT_EVENTS, timeout);
    atomic_exchange(&p->sleep, AWAKE);
    rt_count_own(&p->turns, 1);
    worker->next_event = 0;
    worker->event_count = n > 0 ? n : 0;
}

void rt_poller_turn(struct rt_poller *p, struct rt_worker *worker,
                    bool (*stay_awake)(struct rt_worker *worker))
{
    struct rt_node *retired = rt_stack_take(&p->retired);
    uint64_t due;

    if (!attend_all(p, worker)) {
        /* Another leader is at it, and may hold one of these in its hands. */
        while (retired != NULL) {
            struct rt_node *node = retired;

            retired = node->next;
            rt_stack_push(&p->retired, node);
        }
        return;
    }
    /* Nothing that was retired before the look above is held by anybody: the
     * events of the last fetch are handled, and it was not in attention. */
    free_retired(retired);

    due = atomic_load(&p->next_due);
    if (due != RT_NEVER) {
        uint64_t now = rt_now();

        if (due <= now)
            find_due(p, now);
    }
    fetch(p, worker, stay_awake);
    while (worker->next_event < worker->event_count) {
        const struct epoll_event *ev = &worker->events[worker->next_event++];

        if (ev->data.ptr == NULL)
            continue; /* the bell */
        look(ev->data.ptr, rt_poller_what(ev->events), worker);
        if (!worker->leading)
            return;
    }
}
