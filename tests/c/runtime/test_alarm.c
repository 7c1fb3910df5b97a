/* A mailbox's alarm: its descriptor becomes readable at the time that was set. */
#include "calls.h"

static bool readable_now(const struct rt_mailbox *mb)
{
    return mt_readable(mb->fd, 0);
}

static void goes_off_once(struct rt_mailbox *mb)
{
    uint64_t start = rt_now();

    MT_CHECK(!rt_mailbox_alarmed(mb));
    MT_EQ(rt_mailbox_alarm(mb, start + 30 * RT_MS), RT_OK);
    MT_CHECK(!readable_now(mb) || rt_now() >= start + 30 * RT_MS);
    MT_CHECK(mt_readable(mb->fd, MT_HANG_MS));
    MT_CHECK(rt_now() >= start + 30 * RT_MS); /* never early */
    rt_mailbox_begin(mb);
    MT_CHECK(rt_mailbox_next(mb) == NULL);
    MT_CHECK(readable_now(mb)); /* it is the owner who puts it out */
    MT_CHECK(rt_mailbox_alarmed(mb));
    MT_CHECK(!rt_mailbox_alarmed(mb));
    MT_CHECK(!readable_now(mb));
    mt_sleep_ms(5);
    MT_CHECK(!readable_now(mb));
}

static void the_nearest_counts(struct rt_mailbox *mb)
{
    uint64_t start = rt_now();

    MT_EQ(rt_mailbox_alarm(mb, start + 3600 * RT_SEC), RT_OK);
    MT_EQ(rt_mailbox_alarm(mb, start + 7200 * RT_SEC), RT_OK);
    MT_EQ(mb->alarm, start + 3600 * RT_SEC);
    MT_EQ(rt_mailbox_alarm(mb, start + 10 * RT_MS), RT_OK);
    MT_CHECK(mt_readable(mb->fd, MT_HANG_MS));
    MT_CHECK(rt_mailbox_alarmed(mb));
    MT_CHECK(!readable_now(mb));
}

static void the_past_is_now(struct rt_mailbox *mb)
{
    MT_EQ(rt_mailbox_alarm(mb, rt_now() - RT_MS), RT_OK);
    MT_CHECK(mt_readable(mb->fd, MT_HANG_MS));
    MT_CHECK(rt_mailbox_alarmed(mb));
    MT_EQ(rt_mailbox_alarm(mb, 0), RT_OK); /* long past: not "never" */
    MT_CHECK(mt_readable(mb->fd, MT_HANG_MS));
    MT_CHECK(rt_mailbox_alarmed(mb));
    MT_EQ(rt_mailbox_alarm(mb, RT_NEVER), RT_OK);
    MT_CHECK(!readable_now(mb));
    MT_CHECK(!rt_mailbox_alarmed(mb));
}

/* Jobs come home beside it, and ring as ever. */
static void beside_jobs(struct rt_mailbox *mb)
{
    struct rt_pool *pool;
    struct call calls[20];
    unsigned i;

    MT_REQUIRE(rt_pool_new(2, 64, &pool) == RT_OK);
    MT_EQ(rt_mailbox_alarm(mb, rt_now() + 5 * RT_MS), RT_OK);
    for (i = 0; i < 20; i++) {
        call_init(&calls[i], mb, NULL, NULL);
        MT_EQ(rt_pool_submit(pool, &calls[i].job), RT_OK);
        call_home(mb, &calls[i]);
        mt_sleep_ms(i % 3);
    }
    MT_EVENTUALLY(rt_now() > mb->alarm);
    MT_CHECK(rt_mailbox_alarmed(mb));
    call_init(&calls[0], mb, NULL, NULL);
    MT_EQ(rt_pool_submit(pool, &calls[0].job), RT_OK);
    MT_CHECK(mt_readable(mb->fd, MT_HANG_MS));
    call_home(mb, &calls[0]);
    end_pool(pool, mb);
}

int main(void)
{
    unsigned fds = mt_fds();
    struct rt_mailbox *mb;

    mt_seed();
    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    goes_off_once(mb);
    the_nearest_counts(mb);
    the_past_is_now(mb);
    beside_jobs(mb);
    MT_EQ(rt_mailbox_alarm(mb, rt_now() + 3600 * RT_SEC), RT_OK);
    rt_mailbox_release(mb);
    MT_FDS_CLOSED(fds);
    return mt_report("alarm");
}
