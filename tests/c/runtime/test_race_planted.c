/* expect: tsan-report */
/* The proof that ThreadSanitizer sees what a worker hands over: a job goes to a
 * worker and comes home as in the other tests, but its owner looks at the result
 * before it is home. Without this program a clean run of the others could mean
 * that the tool is blind. */
#include "calls.h"

static void answer(struct call *call, struct rt_worker *worker)
{
    (void)worker;
    *(unsigned *)call->arg = 42;
}

int main(void)
{
    struct rt_mailbox *home;
    struct rt_pool *pool;
    unsigned i, seen = 0;

    mt_seed();
    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    MT_REQUIRE(rt_pool_new(2, 64, &pool) == RT_OK);
    for (i = 0; i < 200; i++) {
        unsigned result = 0;
        struct call call;

        call_init(&call, home, answer, &result);
        MT_EQ(rt_pool_submit(pool, &call.job), RT_OK);
        seen += *(volatile unsigned *)&result == 42; /* the race */
        call_home(home, &call);
        MT_EQ(result, 42);
    }
    printf("the result was there early %u times\n", seen);
    end_pool(pool, home);
    rt_mailbox_release(home);
    return mt_report("race_planted");
}
