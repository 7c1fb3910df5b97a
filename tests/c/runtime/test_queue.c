/* The lock-free pieces: order, and nothing lost or doubled. */
#include "rt_queue.h"
#include "threads.h"

#define PUSHERS 4
#define TAKERS 3

struct item {
    struct rt_node node;
    unsigned pusher;
    unsigned serial;
    atomic_uint seen;
};

static struct rt_stack stack;
static struct item *items[PUSHERS];
static unsigned each;
static atomic_uint pushers_done, taken;

static void *pusher(void *arg)
{
    unsigned me = (unsigned)(uintptr_t)arg, i;

    for (i = 0; i < each; i++) {
        items[me][i].pusher = me;
        items[me][i].serial = i;
        rt_stack_push(&stack, &items[me][i].node);
    }
    atomic_fetch_add(&pushers_done, 1);
    return NULL;
}

/* A chain is oldest first: one pusher's items come in the order of its pushes. */
static void check_chain(struct rt_node *node, int64_t last[PUSHERS])
{
    while (node != NULL) {
        struct item *item = RT_CONTAINER_OF(node, struct item, node);

        node = node->next;
        if ((int64_t)item->serial <= last[item->pusher])
            MT_CHECK(!"a stack's chain is out of order");
        last[item->pusher] = item->serial;
        if (atomic_fetch_add(&item->seen, 1) != 0)
            MT_CHECK(!"an item was taken twice");
        atomic_fetch_add(&taken, 1);
    }
}

static void *taker(void *arg)
{
    bool alone = arg != NULL;
    int64_t last[PUSHERS];
    unsigned i, spins = 0;

    for (i = 0; i < PUSHERS; i++)
        last[i] = -1;
    while (atomic_load(&taken) < PUSHERS * each) {
        struct rt_node *chain = rt_stack_take(&stack);

        /* Alone, the order holds over all chains; else within each. */
        for (i = 0; i < PUSHERS && !alone; i++)
            last[i] = -1;
        check_chain(chain, last);
        if (chain == NULL)
            mt_relax(&spins);
    }
    return NULL;
}

static void stack_round(unsigned takers)
{
    pthread_t threads[PUSHERS + TAKERS];
    unsigned i, j;

    atomic_store(&taken, 0);
    rt_stack_init(&stack);
    MT_CHECK(rt_stack_empty(&stack));
    for (i = 0; i < PUSHERS; i++) {
        items[i] = calloc(each, sizeof **items);
        MT_REQUIRE(items[i] != NULL);
    }
    for (i = 0; i < takers; i++)
        threads[PUSHERS + i] = mt_spawn(taker, takers == 1 ? &stack : NULL);
    for (i = 0; i < PUSHERS; i++)
        threads[i] = mt_spawn(pusher, (void *)(uintptr_t)i);
    for (i = 0; i < PUSHERS + takers; i++)
        mt_join(threads[i]);
    MT_CHECK(rt_stack_empty(&stack));
    MT_CHECK(rt_stack_take(&stack) == NULL);
    for (i = 0; i < PUSHERS; i++) {
        for (j = 0; j < each; j++) {
            if (atomic_load(&items[i][j].seen) != 1)
                MT_CHECK(!"an item was lost");
        }
        free(items[i]);
    }
}

static void stack_alone(void)
{
    struct item a, b, c;
    struct rt_node *chain;

    rt_stack_init(&stack);
    MT_CHECK(rt_stack_take(&stack) == NULL);
    rt_stack_push(&stack, &a.node);
    MT_CHECK(!rt_stack_empty(&stack));
    rt_stack_push(&stack, &b.node);
    rt_stack_push(&stack, &c.node);
    chain = rt_stack_take(&stack);
    MT_CHECK(chain == &a.node && a.node.next == &b.node && b.node.next == &c.node);
    MT_CHECK(c.node.next == NULL);
    /* A node that was taken can be pushed again at once. */
    rt_stack_push(&stack, &c.node);
    rt_stack_push(&stack, &a.node);
    chain = rt_stack_take(&stack);
    MT_CHECK(chain == &c.node && c.node.next == &a.node && a.node.next == NULL);
}

/* ---- ring --------------------------------------------------------------- */

static struct rt_ring *ring;
static atomic_uint popped;
static unsigned ring_total;
static atomic_uchar *popped_marks;

static void ring_alone(unsigned capacity)
{
    uintptr_t n, held = 0;

    ring = rt_ring_new(capacity);
    MT_REQUIRE(ring != NULL);
    MT_CHECK(rt_ring_empty(ring) && rt_ring_pop(ring) == NULL);
    while (rt_ring_push(ring, (void *)(held + 1)))
        held++;
    MT_CHECK(held >= capacity && !rt_ring_empty(ring));
    for (n = 1; n <= held; n++)
        MT_CHECK(rt_ring_pop(ring) == (void *)n);
    MT_CHECK(rt_ring_empty(ring) && rt_ring_pop(ring) == NULL);
    rt_ring_free(ring);
}

static void *popper(void *arg)
{
    uintptr_t last = 0;
    unsigned spins = 0;

    (void)arg;
    while (atomic_load(&popped) < ring_total) {
        uintptr_t n = (uintptr_t)rt_ring_pop(ring);

        if (n == 0) {
            mt_relax(&spins);
            continue;
        }
        if (n <= last)
            MT_CHECK(!"one popper saw the ring out of order");
        last = n;
        if (atomic_fetch_add(&popped_marks[n - 1], 1) != 0)
            MT_CHECK(!"an entry was popped twice");
        atomic_fetch_add(&popped, 1);
    }
    return NULL;
}

static void ring_shared(void)
{
    pthread_t threads[TAKERS];
    unsigned i, spins = 0;

    ring_total = (unsigned)MT_SCALE(400000);
    popped_marks = calloc(ring_total, 1);
    ring = rt_ring_new(60);
    MT_REQUIRE(ring != NULL && popped_marks != NULL);
    for (i = 0; i < TAKERS; i++)
        threads[i] = mt_spawn(popper, NULL);
    for (i = 0; i < ring_total; i++) {
        while (!rt_ring_push(ring, (void *)(uintptr_t)(i + 1)))
            mt_relax(&spins);
    }
    for (i = 0; i < TAKERS; i++)
        mt_join(threads[i]);
    MT_EQ(atomic_load(&popped), ring_total);
    rt_ring_free(ring);
    rt_ring_free(NULL);
    free((void *)popped_marks);
}

/* ---- event -------------------------------------------------------------- */

static struct rt_event there, back;
static atomic_uint ball; /* rounds played by the other side */
static unsigned rounds;

static void wait_for_ball(struct rt_event *ev, unsigned wanted)
{
    for (;;) {
        uint32_t snapshot = rt_event_value(ev);

        if (atomic_load(&ball) >= wanted)
            return;
        rt_event_wait(ev, snapshot);
    }
}

static void *returner(void *arg)
{
    unsigned i;

    (void)arg;
    for (i = 0; i < rounds; i++) {
        wait_for_ball(&there, 2 * i + 1);
        atomic_fetch_add(&ball, 1);
        rt_event_signal(&back);
    }
    return NULL;
}

static void *late_signal(void *arg)
{
    mt_sleep_ms(250);
    rt_event_signal(arg);
    return NULL;
}

static void events(void)
{
    pthread_t thread;
    uint32_t snapshot;
    unsigned i;

    rt_event_init(&there);
    rt_event_init(&back);
    snapshot = rt_event_value(&there);
    rt_event_signal(&there);
    MT_CHECK(rt_event_value(&there) != snapshot);
    rt_event_wait(&there, snapshot); /* moved already: no sleep */

    rounds = (unsigned)MT_SCALE(40000);
    thread = mt_spawn(returner, NULL);
    for (i = 0; i < rounds; i++) {
        atomic_fetch_add(&ball, 1);
        rt_event_signal(&there);
        wait_for_ball(&back, 2 * i + 2);
    }
    mt_join(thread);
    MT_EQ(atomic_load(&ball), 2 * rounds);

    /* A sleep longer than one of the event's own slices. */
    snapshot = rt_event_value(&there); /* before: the thread may come first */
    thread = mt_spawn(late_signal, &there);
    while (rt_event_value(&there) == snapshot)
        rt_event_wait(&there, snapshot);
    mt_join(thread);
}

int main(void)
{
    unsigned i;

    mt_seed();
    stack_alone();
    each = (unsigned)MT_SCALE(100000);
    for (i = 0; i < 3; i++) {
        stack_round(1);
        stack_round(TAKERS);
    }
    for (i = 1; i < 40; i += 3)
        ring_alone(i);
    ring_alone(1024);
    ring_shared();
    events();
    return mt_report("queue");
}
