#include "rt_queue.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <ck_ec.h>
#include <ck_pr.h>
#include <ck_ring.h>
#include <ck_stack.h>

_Static_assert(sizeof(struct rt_stack) >= sizeof(ck_stack_t), "rt_stack holds a ck_stack_t");
_Static_assert(sizeof(struct rt_node) == sizeof(ck_stack_entry_t), "rt_node is a ck_stack_entry_t");
_Static_assert(sizeof(struct rt_event) == sizeof(ck_ec32_t), "rt_event is a ck_ec32_t");

/* Under TSan this file is not instrumented, so the hand-over it performs is
 * stated by hand: what the pusher wrote before the push is visible to the
 * taker after the take. */
#if RT_TSAN
extern void __tsan_acquire(void *addr);
extern void __tsan_release(void *addr);
#define HB_RELEASE(addr) __tsan_release((void *)(addr))
#define HB_ACQUIRE(addr) __tsan_acquire((void *)(addr))
#else
#define HB_RELEASE(addr) ((void)(addr))
#define HB_ACQUIRE(addr) ((void)(addr))
#endif

static ck_stack_t *ck_of(const struct rt_stack *s)
{
    return (ck_stack_t *)(void *)(uintptr_t)s;
}

void rt_stack_init(struct rt_stack *s)
{
    ck_stack_init(ck_of(s));
}

void rt_stack_push(struct rt_stack *s, struct rt_node *node)
{
    HB_RELEASE(node);
    ck_stack_push_upmc(ck_of(s), (ck_stack_entry_t *)(void *)node);
}

struct rt_node *rt_stack_take(struct rt_stack *s)
{
    struct rt_node *newest, *fifo = NULL;

    if (ck_pr_load_ptr(&ck_of(s)->head) == NULL)
        return NULL;
    newest = (struct rt_node *)(void *)ck_stack_batch_pop_upmc(ck_of(s));
    while (newest != NULL) {
        struct rt_node *next = newest->next;

        HB_ACQUIRE(newest);
        newest->next = fifo;
        fifo = newest;
        newest = next;
    }
    return fifo;
}

bool rt_stack_empty(const struct rt_stack *s)
{
    return ck_pr_load_ptr(&ck_of(s)->head) == NULL;
}

struct rt_ring {
    ck_ring_t ring;
    ck_ring_buffer_t *buffer;
};

struct rt_ring *rt_ring_new(unsigned capacity)
{
    struct rt_ring *r;
    unsigned size = 4;

    /* ck_ring holds size - 1 entries. */
    while (size <= capacity && size < (1u << 30))
        size <<= 1;
    r = aligned_alloc(RT_CACHELINE, (sizeof *r + RT_CACHELINE - 1) & ~(size_t)(RT_CACHELINE - 1));
    if (r == NULL)
        return NULL;
    r->buffer = calloc(size, sizeof *r->buffer);
    if (r->buffer == NULL) {
        free(r);
        return NULL;
    }
    ck_ring_init(&r->ring, size);
    return r;
}

void rt_ring_free(struct rt_ring *r)
{
    if (r == NULL)
        return;
    free(r->buffer);
    free(r);
}

bool rt_ring_push(struct rt_ring *r, void *ptr)
{
    HB_RELEASE(ptr);
    return ck_ring_enqueue_spmc(&r->ring, r->buffer, ptr);
}

void *rt_ring_pop(struct rt_ring *r)
{
    void *ptr = NULL;

    if (!ck_ring_dequeue_spmc(&r->ring, r->buffer, &ptr))
        return NULL;
    HB_ACQUIRE(ptr);
    return ptr;
}

bool rt_ring_empty(const struct rt_ring *r)
{
    return ck_ring_size(&r->ring) == 0;
}

static int ec_gettime(const struct ck_ec_ops *ops, struct timespec *out)
{
    (void)ops;
    return clock_gettime(CLOCK_MONOTONIC, out);
}

static void ec_wait32(const struct ck_ec_wait_state *state, const uint32_t *address,
                      uint32_t expected, const struct timespec *deadline)
{
    (void)state;
    /* The deadline is absolute, as FUTEX_WAIT_BITSET takes it. */
    syscall(SYS_futex, address, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected, deadline,
            NULL, FUTEX_BITSET_MATCH_ANY);
}

static void ec_wake32(const struct ck_ec_ops *ops, const uint32_t *address)
{
    (void)ops;
    syscall(SYS_futex, address, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
}

static const struct ck_ec_ops ec_ops = {
    .gettime = ec_gettime,
    .wait32 = ec_wait32,
    .wake32 = ec_wake32,
    .busy_loop_iter = 1,
    .initial_wait_ns = 100 * 1000 * 1000,
};

static const struct ck_ec_mode ec_mode = { .ops = &ec_ops, .single_producer = false };

static ck_ec32_t *ec_of(const struct rt_event *ev)
{
    return (ck_ec32_t *)(void *)(uintptr_t)ev;
}

void rt_event_init(struct rt_event *ev)
{
    ck_ec32_init(ec_of(ev), 0);
}

uint32_t rt_event_value(const struct rt_event *ev)
{
    return ck_ec32_value(ec_of(ev));
}

void rt_event_wait(struct rt_event *ev, uint32_t snapshot)
{
    (void)ck_ec32_wait(ec_of(ev), &ec_mode, snapshot, NULL);
    HB_ACQUIRE(ev);
}

void rt_event_signal(struct rt_event *ev)
{
    HB_RELEASE(ev);
    ck_ec32_inc(ec_of(ev), &ec_mode);
}

void rt_pause(void)
{
    ck_pr_stall();
}
