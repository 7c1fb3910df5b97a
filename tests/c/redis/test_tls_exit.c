/* not with: tsan, to which libcrypto's locks of the threads at the other end are no locks */
/* The process ends while workers and other threads are inside OpenSSL, which frees
 * what they stand on: nobody crashes, nobody hangs. Each end is a process of its own. */
#include <unistd.h>

#include "oracle.h"
#include "secured.h"

#if defined(__SANITIZE_ADDRESS__)
int __lsan_is_turned_off(void);
/* What is under way at the end is no leak. */
int __lsan_is_turned_off(void)
{
    return 1;
}
#endif

static void *send_for_ever(void *arg)
{
    struct rds_channel *channel = arg;
    struct rt_mailbox *mb;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    for (;;) {
        struct command c[64];
        unsigned i;

        for (i = 0; i < 64; i++) {
            command_echo(&c[i], mb, RT_NEVER, i);
            if (rds_channel_submit(channel, &c[i].job) != RT_OK)
                pause(); /* the end is near */
        }
        for (i = 0; i < 64; i++) {
            while (command_next(mb, 100000) == NULL) {
            }
        }
        for (i = 0; i < 64; i++)
            rds_job_fini(&c[i].job);
    }
    return NULL;
}

/* At random: in the first handshake, while connected, while connecting again. */
static void child(uint64_t rnd, unsigned nth)
{
    struct rds_channel *channel;
    struct rt_pool *pool;
    struct front front;
    unsigned i;

    alarm(60);
    front_to_server(&front, (struct front_options){ .fragment = 512 });
    MT_REQUIRE(rt_pool_new(1 + nth % 3, 64, &pool) == RT_OK);
    channel = channel_to_front(pool, &front);
    for (i = 0; i < 2; i++)
        (void)mt_spawn(send_for_ever, channel);
    usleep((useconds_t)(mt_rand(&rnd) % 30000));
    if (nth % 3 == 1)
        atomic_fetch_add(&front.cuts, 1);
    if (nth % 3 == 2)
        rds_channel_disconnect(channel);
    usleep((useconds_t)(mt_rand(&rnd) % 3000));
    /* The front is OpenSSL's as well, and not behind the gate. */
    front_quiet(&front);
    exit(0);
}

int main(void)
{
    uint64_t rnd = mt_seed();
    unsigned i, count = (unsigned)MT_SCALE(60);

    for (i = 0; i < count; i++) {
        int status;
        pid_t pid = fork();

        MT_REQUIRE(pid >= 0);
        if (pid == 0)
            child(mt_rand(&rnd) + i, i);
        MT_REQUIRE(waitpid(pid, &status, 0) == pid);
        MT_EQ(status, 0);
    }
    return mt_report("tls_exit");
}
