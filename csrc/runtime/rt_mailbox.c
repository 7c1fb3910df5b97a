#include "rt_mailbox.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "rt_poller.h"

#define READY_MAX 64 /* lent sources looked at in one go; others have the next */

static void close_descriptors(struct rt_mailbox *mb)
{
    if (mb->fd >= 0)
        close(mb->fd);
    if (mb->bellfd >= 0)
        close(mb->bellfd);
    if (mb->timerfd >= 0)
        close(mb->timerfd);
}

int rt_mailbox_new(struct rt_mailbox **out)
{
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL };
    struct rt_mailbox *mb = calloc(1, sizeof *mb);

    if (mb == NULL)
        return RT_ENOMEM;
    mb->timerfd = -1;
    mb->alarm = RT_NEVER;
    mb->fd = epoll_create1(EPOLL_CLOEXEC);
    mb->bellfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (mb->fd < 0 || mb->bellfd < 0 || epoll_ctl(mb->fd, EPOLL_CTL_ADD, mb->bellfd, &ev) < 0) {
        close_descriptors(mb);
        free(mb);
        return RT_ESYS;
    }
    rt_stack_init(&mb->done);
    rt_stack_init(&mb->returned);
    atomic_init(&mb->armed, 0);
    atomic_init(&mb->refs, 1);
    *out = mb;
    return RT_OK;
}

static void end_loans(struct rt_mailbox *mb)
{
    struct rt_node *node = rt_stack_take(&mb->returned);

    while (node != NULL) {
        struct rt_loan *loan = RT_CONTAINER_OF(node, struct rt_loan, node);

        node = node->next;
        loan->drop(loan->source);
        free(loan);
    }
}

static void unref(struct rt_mailbox *mb)
{
    /* Partner: the same line in the other thread; the last one frees. */
    if (atomic_fetch_sub_explicit(&mb->refs, 1, memory_order_acq_rel) != 1)
        return;
    end_loans(mb);
    close_descriptors(mb);
    free(mb);
}

void rt_mailbox_release(struct rt_mailbox *mb)
{
    if (mb != NULL)
        unref(mb);
}

static void ring(struct rt_mailbox *mb)
{
    const uint64_t one = 1;
    ssize_t n;

    rt_count(&mb->rings, 1);
    do {
        n = write(mb->bellfd, &one, sizeof one);
    } while (n < 0 && errno == EINTR);
    /* EAGAIN: the counter is full, so the descriptor is readable anyway. */
}

void rt_mailbox_post(struct rt_mailbox *mb, struct rt_joblist *jobs)
{
    struct rt_job *first = jobs->head;

    if (first == NULL)
        return;
    /* The owner may drain, release and go as soon as the push is visible. */
    atomic_fetch_add_explicit(&mb->refs, 1, memory_order_relaxed);
    rt_joblist_init(jobs);
    rt_stack_push(&mb->done, &first->node);
    rt_count(&mb->posts, 1);
    /* Partner: the exchange in rt_mailbox_next(). */
    if (atomic_exchange(&mb->armed, 1) == 0)
        ring(mb);
    unref(mb);
}

static void read_bell(struct rt_mailbox *mb)
{
    uint64_t ignored;
    ssize_t n;

    do {
        n = read(mb->bellfd, &ignored, sizeof ignored);
    } while (n < 0 && errno == EINTR);
}

static void look_at_loans(struct rt_mailbox *mb)
{
    struct epoll_event events[READY_MAX];
    int i, n;

    n = epoll_wait(mb->fd, events, READY_MAX, 0);
    for (i = 0; i < n; i++) {
        const struct rt_loan *loan = events[i].data.ptr;

        if (loan == NULL)
            read_bell(mb);
        else if (events[i].data.ptr != &mb->timerfd) /* rt_mailbox_alarmed() sees to it */
            loan->ready(loan->source, rt_poller_what(events[i].events));
    }
}

void rt_mailbox_begin(struct rt_mailbox *mb)
{
    /* What was returned before this look is in no event that is still to come. */
    end_loans(mb);
    if (atomic_load(&mb->lent) == 0) {
        read_bell(mb);
    } else {
        /* As if it had been rung: rt_mailbox_next() takes what is posted now. */
        atomic_exchange(&mb->armed, 1);
        look_at_loans(mb);
    }
    mb->cleared = false;
}

struct rt_job *rt_mailbox_next(struct rt_mailbox *mb)
{
    struct rt_job *job;

    while (mb->ready == NULL) {
        if (mb->batches == NULL)
            mb->batches = rt_stack_take(&mb->done);
        if (mb->batches == NULL) {
            if (mb->cleared)
                return NULL;
            /* Clear before taking: a later post must see 0 and ring again.
             * Partner: the exchange in rt_mailbox_post(). */
            atomic_exchange(&mb->armed, 0);
            mb->cleared = true;
            continue;
        }
        mb->ready = RT_CONTAINER_OF(mb->batches, struct rt_job, node);
        mb->batches = mb->batches->next;
    }
    job = mb->ready;
    mb->ready = job->next;
    job->next = NULL;
    return job;
}

void rt_mailbox_again(struct rt_mailbox *mb)
{
    atomic_store(&mb->armed, 1);
    mb->cleared = false;
    ring(mb);
}

/* Set the timer; 0 stops it, and either takes its readiness away. */
static int set_timer(const struct rt_mailbox *mb, uint64_t when)
{
    const struct itimerspec at = {
        .it_value = { .tv_sec = (time_t)(when / RT_SEC), .tv_nsec = (long)(when % RT_SEC) },
    };

    return timerfd_settime(mb->timerfd, TFD_TIMER_ABSTIME, &at, NULL) < 0 ? RT_ESYS : RT_OK;
}

int rt_mailbox_alarm(struct rt_mailbox *mb, uint64_t when)
{
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = &mb->timerfd };
    int err;

    if (when >= mb->alarm)
        return RT_OK;
    if (mb->timerfd < 0) {
        mb->timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        if (mb->timerfd < 0)
            return RT_ESYS;
        if (epoll_ctl(mb->fd, EPOLL_CTL_ADD, mb->timerfd, &ev) < 0) {
            close(mb->timerfd);
            mb->timerfd = -1;
            return RT_ESYS;
        }
    }
    err = set_timer(mb, when > 0 ? when : 1);
    if (err == RT_OK)
        mb->alarm = when;
    return err;
}

bool rt_mailbox_alarmed(struct rt_mailbox *mb)
{
    if (mb->alarm == RT_NEVER || rt_now() < mb->alarm)
        return false;
    mb->alarm = RT_NEVER;
    (void)set_timer(mb, 0);
    return true;
}

int rt_mailbox_lend(struct rt_loan *loan)
{
    struct epoll_event ev = { .events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.ptr = loan };
    struct rt_mailbox *mb = loan->mailbox;

    atomic_fetch_add_explicit(&mb->refs, 1, memory_order_relaxed);
    /* First: who finds the descriptor ready must look for it. */
    atomic_fetch_add(&mb->lent, 1);
    if (epoll_ctl(mb->fd, EPOLL_CTL_ADD, loan->fd, &ev) == 0)
        return RT_OK;
    atomic_fetch_sub(&mb->lent, 1);
    unref(mb); /* never the last */
    return RT_ESYS;
}

void rt_mailbox_take_back(struct rt_loan *loan)
{
    struct rt_mailbox *mb = loan->mailbox;

    (void)epoll_ctl(mb->fd, EPOLL_CTL_DEL, loan->fd, NULL);
    atomic_fetch_sub(&mb->lent, 1);
    rt_stack_push(&mb->returned, &loan->node);
    unref(mb);
}
