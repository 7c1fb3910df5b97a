/* The lock-free pieces, and the only door to Concurrency Kit.
 *
 * rt_stack  many pushers, any number of takers that take everything at once.
 *           Taking returns the nodes oldest first, so that a stack serves as
 *           an unbounded FIFO hand-over between threads.
 *           Why right: push is a CAS loop on the head (ck_stack_push_upmc),
 *           taking is one exchange of the head with NULL
 *           (ck_stack_batch_pop_upmc).  No node is ever popped singly, so the
 *           ABA problem of a Treiber stack cannot arise.
 * rt_ring   bounded FIFO of pointers, one pusher at a time, many poppers
 *           (ck_ring spmc).  The multi-producer form is not used: it spins
 *           until earlier producers commit, which stalls when one of them is
 *           preempted.
 * rt_event  an event count on which one worker sleeps (ck_ec32 on a futex).
 *           Each worker has its own, since ck_ec wakes every waiter.
 *
 * rt_queue.c is compiled without -fsanitize=thread: TSan does not understand
 * CK's inline assembly.  It states the ordering itself, with
 * __tsan_release/__tsan_acquire on what is handed over. */
#ifndef RT_QUEUE_H
#define RT_QUEUE_H

#include "rt_base.h"

struct rt_node {
    struct rt_node *next;
};

struct rt_stack {
    void *words[2]; /* a ck_stack_t; its layout is asserted in rt_queue.c */
};

void rt_stack_init(struct rt_stack *s);

/* Put node on s.  Lock-free.
 * Thread: any.  GIL: irrelevant.  Blocks: no.
 * Ownership: s holds node until it is taken. */
void rt_stack_push(struct rt_stack *s, struct rt_node *node);

/* Take all of s, oldest first; NULL when empty.  Wait-free.
 * Thread: any.  Blocks: no.  Ownership: the caller holds the chain. */
struct rt_node *rt_stack_take(struct rt_stack *s);

/* Whether s holds something; a hint unless the caller has just made a seq_cst
 * operation that orders it after its own announcement. */
bool rt_stack_empty(const struct rt_stack *s);

struct rt_ring;

/* A ring that holds at least capacity pointers, or NULL (no memory). */
struct rt_ring *rt_ring_new(unsigned capacity);
void rt_ring_free(struct rt_ring *r);

/* Thread: one pusher at a time.  Blocks: no.  False when full. */
bool rt_ring_push(struct rt_ring *r, void *ptr);

/* Thread: any.  Blocks: no.  NULL when empty. */
void *rt_ring_pop(struct rt_ring *r);
bool rt_ring_empty(const struct rt_ring *r);

/* What a loop that looks at memory does in between: the other thread of the core has
 * its turn. */
void rt_pause(void);

struct rt_event {
    uint32_t word; /* a ck_ec32_t; its layout is asserted in rt_queue.c */
};

void rt_event_init(struct rt_event *ev);

/* A snapshot to be taken before the last look at what is waited for. */
uint32_t rt_event_value(const struct rt_event *ev);

/* Sleep until ev moved past the snapshot.  May return early.
 * Thread: the event's one worker.  Blocks: yes. */
void rt_event_wait(struct rt_event *ev, uint32_t snapshot);

/* Move ev and wake its worker.  Thread: any.  Blocks: no. */
void rt_event_signal(struct rt_event *ev);

#endif
