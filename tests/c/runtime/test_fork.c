/* A fork in the middle of work: the child recognises what it inherited, makes its
 * own pool and leaves the parent's alone. */
#include "calls.h"

#if defined(__SANITIZE_THREAD__)
const char *__tsan_default_options(void);
/* The child starts threads, which is what this test is about. */
const char *__tsan_default_options(void)
{
    return "die_after_fork=0";
}
#endif

struct family {
    struct rt_pool *parents;
    struct rt_mailbox *parents_home;
};

/* Runs in the child: any failed check is its exit status. */
static void child(void *arg)
{
    struct family *family = arg;
    struct rt_mailbox *home;
    struct call calls[50];
    struct rt_pool *pool;
    unsigned i;

    alarm(60);
    MT_CHECK(rt_pool_forked(family->parents));
    MT_EQ(mt_threads(), 0); /* they stayed with the parent */
    rt_pool_abandon(family->parents);
    MT_EQ(family->parents->poller.epfd, -1);

    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    MT_REQUIRE(rt_pool_new(2, 64, &pool) == RT_OK);
    MT_CHECK(!rt_pool_forked(pool));
    for (i = 0; i < 50; i++) {
        call_init(&calls[i], home, NULL, NULL);
        MT_EQ(rt_pool_submit(pool, &calls[i].job), RT_OK);
    }
    for (i = 0; i < 50; i++) {
        call_home(home, &calls[i]);
        MT_EQ(calls[i].job.err, RT_OK);
    }
    end_pool(pool, home);
    rt_pool_release(family->parents); /* harmless, and does nothing to it */
    rt_mailbox_release(home);
    _exit(atomic_load(&mt_failures) != 0);
}

static void spin_a_little(struct call *call, struct rt_worker *worker)
{
    unsigned i;

    (void)worker;
    for (i = 0; i < (uintptr_t)call->arg; i++)
        MT_PAUSE();
}

static void one_fork(struct family *family, uint64_t *rnd)
{
    enum { MANY = 200 };
    struct call calls[MANY];
    unsigned i, at = (unsigned)(mt_rand(rnd) % MANY);
    int status = 0;

    for (i = 0; i < MANY; i++) {
        call_init(&calls[i], family->parents_home, spin_a_little,
                  (void *)(uintptr_t)(mt_rand(rnd) % 500));
        MT_EQ(rt_pool_submit(family->parents, &calls[i].job), RT_OK);
        if (i != at)
            continue;
        if (MT_FORK_AT_REST) {
            unsigned k;

            for (k = 0; k <= i; k++)
                call_home(family->parents_home, &calls[k]);
            rest(family->parents);
        }
        status = mt_in_child(child, family);
    }
    MT_EQ(status, 0);
    MT_CHECK(!rt_pool_forked(family->parents));
    for (i = 0; i < MANY; i++) {
        call_home(family->parents_home, &calls[i]);
        MT_EQ(calls[i].job.err, RT_OK);
    }
}

int main(void)
{
    uint64_t rnd = mt_seed();
    unsigned i, fds, total = (unsigned)MT_SCALE(60);
    struct family family;

    MT_REQUIRE(rt_mailbox_new(&family.parents_home) == RT_OK);
    fds = mt_fds();
    MT_REQUIRE(rt_pool_new(2, 4096, &family.parents) == RT_OK);
    MT_EQ(mt_in_child(child, &family), 0); /* of a pool that was not started */
    for (i = 0; i < total; i++)
        one_fork(&family, &rnd);
    end_pool(family.parents, family.parents_home);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(family.parents_home);
    return mt_report("fork");
}
