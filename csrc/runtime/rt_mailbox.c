#include "rt_mailbox.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

int rt_mailbox_new(struct rt_mailbox **out)
{
    struct rt_mailbox *mb = calloc(1, sizeof *mb);

    if (mb == NULL)
        return RT_ENOMEM;
    mb->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (mb->fd < 0) {
        free(mb);
        return RT_ESYS;
    }
    rt_stack_init(&mb->done);
    atomic_init(&mb->armed, 0);
    atomic_init(&mb->refs, 1);
    *out = mb;
    return RT_OK;
}

static void unref(struct rt_mailbox *mb)
{
    /* Partner: the same line in the other thread; the last one frees. */
    if (atomic_fetch_sub_explicit(&mb->refs, 1, memory_order_acq_rel) != 1)
        return;
    close(mb->fd);
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
        n = write(mb->fd, &one, sizeof one);
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

void rt_mailbox_begin(struct rt_mailbox *mb)
{
    uint64_t ignored;
    ssize_t n;

    do {
        n = read(mb->fd, &ignored, sizeof ignored);
    } while (n < 0 && errno == EINTR);
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
