/* The mailbox: no lost wake-up in a closed loop, batches in order, and its end
 * while somebody posts. */
#include "rt_mailbox.h"
#include "threads.h"

#define WINDOW 4
#define BATCH 32

/* ---- one worker, one owner, few jobs: the case that hangs when the order of
 * clearing and taking is wrong --------------------------------------------- */

static struct rt_mailbox *mailbox;
static struct rt_stack submitted;
static atomic_bool stop;
static struct rt_job jobs[BATCH * WINDOW];

static void submit(struct rt_job *job)
{
    MT_REQUIRE(rt_job_move(job, RT_JOB_IDLE, RT_JOB_QUEUED));
    rt_stack_push(&submitted, &job->node);
}

static void *echo(void *arg)
{
    uint64_t rnd = (uintptr_t)arg;
    unsigned spins = 0;

    while (!atomic_load(&stop)) {
        struct rt_node *node = rt_stack_take(&submitted);
        struct rt_joblist list;

        rt_joblist_init(&list);
        if (node == NULL)
            mt_relax(&spins);
        while (node != NULL) {
            struct rt_job *job = RT_CONTAINER_OF(node, struct rt_job, node);

            node = node->next;
            MT_REQUIRE(rt_job_finish(job, RT_OK));
            rt_joblist_append(&list, job);
            if (mt_rand(&rnd) % 2 == 0)
                rt_mailbox_post(mailbox, &list);
        }
        rt_mailbox_post(mailbox, &list); /* nothing happens when it is empty */
    }
    return NULL;
}

static void closed_loop(unsigned window, uint64_t rounds, uint64_t *rnd)
{
    uint64_t home = 0, sent = 0;
    pthread_t worker;
    unsigned i;

    MT_REQUIRE(rt_mailbox_new(&mailbox) == RT_OK);
    rt_stack_init(&submitted);
    atomic_store(&stop, false);
    for (i = 0; i < window; i++)
        rt_job_init(&jobs[i], mailbox, RT_NEVER);
    worker = mt_spawn(echo, (void *)(uintptr_t)mt_rand(rnd));
    for (i = 0; i < window; i++, sent++)
        submit(&jobs[i]);
    while (home < rounds) {
        struct rt_job *job;
        unsigned left = 1 + (unsigned)(mt_rand(rnd) % 8);

        if (!mt_readable(mailbox->fd, MT_HANG_MS)) {
            MT_CHECK(!"a wake-up was lost");
            break;
        }
        rt_mailbox_begin(mailbox);
        while ((job = rt_mailbox_next(mailbox)) != NULL) {
            home++;
            MT_REQUIRE(rt_job_move(job, RT_JOB_DONE, RT_JOB_IDLE));
            if (sent < rounds) {
                sent++;
                submit(job);
            }
            if (--left == 0) { /* as a loop does that has other things to do */
                rt_mailbox_again(mailbox);
                break;
            }
        }
    }
    MT_EQ(home, rounds);
    atomic_store(&stop, true);
    mt_join(worker);
    rt_mailbox_begin(mailbox);
    MT_CHECK(rt_mailbox_next(mailbox) == NULL);
    /* Never more eventfd writes than posts and calls of again. */
    MT_CHECK(rt_read(&mailbox->posts) <= rounds);
    printf("window %u: %llu posts, %llu eventfd writes\n", window,
           (unsigned long long)rt_read(&mailbox->posts),
           (unsigned long long)rt_read(&mailbox->rings));
    rt_mailbox_release(mailbox);
}

/* ---- alone -------------------------------------------------------------- */

static void post(struct rt_mailbox *mb, unsigned from, unsigned n)
{
    struct rt_joblist list;
    unsigned i;

    rt_joblist_init(&list);
    for (i = from; i < from + n; i++)
        rt_joblist_append(&list, &jobs[i]);
    rt_mailbox_post(mb, &list);
    MT_CHECK(list.head == NULL && list.count == 0);
}

static void alone(void)
{
    struct rt_mailbox *mb;
    unsigned i;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    rt_mailbox_begin(mb);
    MT_CHECK(rt_mailbox_next(mb) == NULL);
    MT_CHECK(!mt_readable(mb->fd, 0));
    post(mb, 0, 0);
    MT_CHECK(!mt_readable(mb->fd, 0));

    /* Many posts, one write; oldest first over batches of any size. */
    post(mb, 0, 3);
    post(mb, 3, 1);
    post(mb, 4, 7);
    MT_CHECK(mt_readable(mb->fd, 0));
    MT_EQ(rt_read(&mb->rings), 1);
    MT_EQ(rt_read(&mb->posts), 3);
    rt_mailbox_begin(mb);
    MT_CHECK(!mt_readable(mb->fd, 0));
    for (i = 0; i < 11; i++)
        MT_CHECK(rt_mailbox_next(mb) == &jobs[i]);
    MT_CHECK(rt_mailbox_next(mb) == NULL);

    /* Dry means that the next post rings. */
    post(mb, 0, 1);
    MT_EQ(rt_read(&mb->rings), 2);
    /* A post in the middle of a look: not lost, and in order. */
    rt_mailbox_begin(mb);
    MT_CHECK(rt_mailbox_next(mb) == &jobs[0]);
    post(mb, 1, 2);
    MT_EQ(rt_read(&mb->rings), 2);
    MT_CHECK(rt_mailbox_next(mb) == &jobs[1]);
    /* Stop half-way: the owner is called again though nobody posts. */
    rt_mailbox_again(mb);
    MT_CHECK(mt_readable(mb->fd, 0));
    post(mb, 3, 1);
    rt_mailbox_begin(mb);
    MT_CHECK(rt_mailbox_next(mb) == &jobs[2]);
    MT_CHECK(rt_mailbox_next(mb) == &jobs[3]);
    MT_CHECK(rt_mailbox_next(mb) == NULL);
    MT_CHECK(!mt_readable(mb->fd, 0));
    rt_mailbox_release(mb);
    rt_mailbox_release(NULL);
}

/* ---- many posters, order of each ----------------------------------------- */

#define POSTERS 3

struct mail {
    struct rt_job job;
    unsigned poster, serial;
};

static struct mail *letters[POSTERS];
static unsigned letters_each;

static void *poster(void *arg)
{
    unsigned me = (unsigned)(uintptr_t)arg, i = 0;
    uint64_t rnd = me;

    while (i < letters_each) {
        unsigned n = 1 + (unsigned)(mt_rand(&rnd) % BATCH);
        struct rt_joblist list;

        rt_joblist_init(&list);
        for (; n > 0 && i < letters_each; n--, i++) {
            letters[me][i].poster = me;
            letters[me][i].serial = i;
            rt_joblist_append(&list, &letters[me][i].job);
        }
        rt_mailbox_post(mailbox, &list);
    }
    return NULL;
}

static void many_posters(void)
{
    unsigned next[POSTERS] = { 0 }, i, home = 0;
    pthread_t threads[POSTERS];

    letters_each = (unsigned)MT_SCALE(300000);
    MT_REQUIRE(rt_mailbox_new(&mailbox) == RT_OK);
    for (i = 0; i < POSTERS; i++) {
        letters[i] = calloc(letters_each, sizeof **letters);
        MT_REQUIRE(letters[i] != NULL);
    }
    for (i = 0; i < POSTERS; i++)
        threads[i] = mt_spawn(poster, (void *)(uintptr_t)i);
    while (home < POSTERS * letters_each && MT_CHECK(mt_readable(mailbox->fd, MT_HANG_MS))) {
        struct rt_job *job;

        rt_mailbox_begin(mailbox);
        while ((job = rt_mailbox_next(mailbox)) != NULL) {
            struct mail *mail = RT_CONTAINER_OF(job, struct mail, job);

            home++;
            if (mail->serial != next[mail->poster]++)
                MT_CHECK(!"jobs came home out of order, doubled or lost");
        }
    }
    MT_EQ(home, POSTERS * letters_each);
    for (i = 0; i < POSTERS; i++) {
        mt_join(threads[i]);
        free(letters[i]);
    }
    rt_mailbox_release(mailbox);
}

/* ---- released by the owner while the post is not over ---------------------- */

static struct rt_mailbox *_Atomic given;

static void *last_poster(void *arg)
{
    struct rt_mailbox *mb;
    unsigned spins = 0;
    struct rt_job job;

    (void)arg;
    while ((mb = atomic_exchange(&given, NULL)) != (void *)1) {
        struct rt_joblist list;

        if (mb == NULL) {
            mt_relax(&spins);
            continue;
        }
        rt_job_init(&job, mb, RT_NEVER);
        rt_joblist_init(&list);
        rt_joblist_append(&list, &job);
        rt_mailbox_post(mb, &list);
    }
    return NULL;
}

static void release_while_posting(void)
{
    unsigned fds = mt_fds(), i, total = (unsigned)MT_SCALE(60000);
    pthread_t thread = mt_spawn(last_poster, NULL);

    for (i = 0; i < total; i++) {
        struct rt_mailbox *mb;
        unsigned spins = 0;

        MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
        atomic_store(&given, mb);
        /* Take the job without waiting for the descriptor: the poster is still
         * between its push and its write. */
        rt_mailbox_begin(mb);
        while (rt_mailbox_next(mb) == NULL)
            mt_relax(&spins);
        rt_mailbox_release(mb);
    }
    atomic_store(&given, (void *)1);
    mt_join(thread);
    MT_FDS_CLOSED(fds);
}

int main(void)
{
    uint64_t rnd = mt_seed();
    unsigned window;

    alone();
    for (window = 1; window <= WINDOW; window++)
        closed_loop(window, MT_SCALE(500000), &rnd);
    many_posters();
    release_while_posting();
    return mt_report("mailbox");
}
